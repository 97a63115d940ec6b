//! No instruction that a CPU model promises is missing.
#![forbid(unsafe_code)]

use anura_accel_tcg::frontend::blocks;
use anura_accel_tcg::frontend::decode::decode;
use anura_accel_tcg::frontend::effects::Features;
use anura_accel_tcg::ir::Opcode;
use anura_accel_tcg::mode::key;
use anura_accel_tcg::vector;
use anura_x86::{CpuModel, FeatureSet};
use iced_x86::{Code, CpuidFeature};
use std::collections::BTreeMap;

/// Kernel or user code of a width, with every unit switched on.
fn mode(bits: u32, cpl: u32) -> u32 {
    let width = match bits {
        64 => key::L64 | key::LMA,
        32 => key::CODE32 | key::STACK32,
        _ => 0,
    };
    width
        | cpl << key::CPL_SHIFT
        | key::PROT
        | key::CS_BASE0
        | key::FLAT
        | key::CS_FLAT
        | key::MP
        | key::SSE
        | key::AVX
        | key::OSXSAVE
        | key::FSGSBASE
}

/// Bytes of every encoding there is: each opcode of each map with each prefix, in memory and register form.
fn encodings(mut see: impl FnMut(&[u8])) {
    let modrms: Vec<u8> = (0..8u8)
        .flat_map(|reg| {
            [reg << 3 | 1, reg << 3 | 4].into_iter().chain((0..8).map(move |rm| 0xc0 | reg << 3 | rm))
        })
        .collect();
    let mut bytes = Vec::with_capacity(32);
    for opcode in 0..=255u8 {
        for &modrm in &modrms {
            for prefix in [&[][..], &[0x66], &[0xf3], &[0xf2], &[0x67], &[0x66, 0xf2], &[0x66, 0x67]] {
                for rex in [0, 0x48] {
                    for escape in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]] {
                        bytes.clear();
                        bytes.extend_from_slice(prefix);
                        if rex != 0 {
                            bytes.push(rex);
                        }
                        bytes.extend_from_slice(escape);
                        bytes.extend([opcode, modrm]);
                        bytes.extend([0x24; 12]);
                        see(&bytes);
                    }
                }
            }
            for map in 1..4u8 {
                for low in 0..16u8 {
                    for v in [0x78, 0x70] {
                        let (w, l, pp) = (low & 8, low & 4, low & 3);
                        see(&[
                            0xc4,
                            0xe0 | map,
                            w << 4 | v | l | pp,
                            opcode,
                            modrm,
                            0x24,
                            0,
                            0,
                            0,
                            0,
                            0,
                            0,
                            0,
                            0,
                            0,
                        ]);
                    }
                }
            }
        }
    }
}

#[test]
fn every_encoding_of_a_promised_feature_becomes_operations() {
    let available = FeatureSet::available();
    let mut features: Vec<Features> = vec![];
    for name in CpuModel::names() {
        let m = CpuModel::parse(name, &available).expect("a model that exists").model;
        features.push(Features::of(&m));
    }
    let mut seen: BTreeMap<u32, (Code, bool)> = BTreeMap::new();
    for (bits, cpl) in [(64, 0), (32, 0), (16, 0)] {
        let mode = mode(bits, cpl);
        let all = Features::all();
        encodings(|bytes| {
            let Ok(i) = decode(&bytes[..bytes.len().min(15)], 0x1000, mode, &all) else { return };
            if seen.get(&(i.code() as u32)).is_some_and(|s| s.1) {
                return;
            }
            let Some(f) = features.iter().find(|f| f.allow(&i)) else { return };
            // Hints on processors without the feature, and no model has it.
            let hint = |f: &CpuidFeature| matches!(f, CpuidFeature::CET_SS | CpuidFeature::HLE_or_RTM);
            if i.cpuid_features().iter().any(hint) {
                return;
            }
            // These are what they say: undefined.
            if matches!(
                i.mnemonic(),
                iced_x86::Mnemonic::Ud0 | iced_x86::Mnemonic::Ud1 | iced_x86::Mnemonic::Ud2
            ) {
                return;
            }
            let second = || Err::<[u8; 15], ()>(());
            let code = &bytes[..i.len()];
            let built = blocks::build(code, second, (0, 0x1000, mode), f, 1);
            let handled = built.is_ok_and(|b| {
                let undefined = b
                    .block
                    .ops
                    .iter()
                    .any(|o| o.op == Opcode::Raise && o.imm & 0xff == 6 && b.block.ops.len() <= 2);
                let opaque = b.block.ops.iter().any(|o| o.op == Opcode::X86);
                !undefined && (!opaque || vector::Insn::new(&i).is_some())
            });
            let entry = seen.entry(i.code() as u32).or_insert((i.code(), false));
            entry.1 |= handled;
        });
    }
    let missing: Vec<String> = seen.values().filter(|s| !s.1).map(|s| format!("{:?}", s.0)).collect();
    assert!(seen.len() > 1500, "only {} encodings were found", seen.len());
    assert!(missing.is_empty(), "{} of {} are not handled: {}", missing.len(), seen.len(), missing.join(" "));
}

#[test]
fn whatever_vectors_can_do_the_portable_code_can() {
    let mut missing = vec![];
    let all = Features::all();
    encodings(|bytes| {
        let Ok(i) = decode(&bytes[..bytes.len().min(15)], 0x1000, mode(64, 3), &all) else { return };
        let b =
            blocks::build(&bytes[..i.len()], || Err::<[u8; 15], ()>(()), (0, 0x1000, mode(64, 3)), &all, 1);
        let opaque = b.is_ok_and(|b| b.block.ops.iter().any(|o| o.op == Opcode::X86));
        if all.allow(&i) && opaque && vector::Insn::new(&i).is_none() {
            missing.push(format!("{:?}", i.code()));
        }
    });
    missing.sort();
    missing.dedup();
    assert!(missing.is_empty(), "{}", missing.join(" "));
}

#[test]
fn what_a_model_hides_is_undefined_or_means_what_it_meant_before() {
    let available = FeatureSet::available();
    let all = Features::all();
    let mode = mode(64, 0);
    // Encodings that have a meaning with everything shown, once each.
    let mut one_each: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    encodings(|bytes| {
        if let Ok(i) = decode(&bytes[..bytes.len().min(15)], 0x1000, mode, &all) {
            one_each.entry(i.code() as u32).or_insert_with(|| bytes[..bytes.len().min(15)].to_vec());
        }
    });
    let mut wrong = vec![];
    for name in CpuModel::names() {
        let m = CpuModel::parse(name, &available).expect("a model that exists").model;
        let f = Features::of(&m);
        for bytes in one_each.values() {
            let Ok(i) = decode(bytes, 0x1000, mode, &f) else { continue };
            if f.allow(&i) {
                continue;
            }
            let b = blocks::build(&bytes[..i.len()], || Err::<[u8; 15], ()>(()), (0, 0x1000, mode), &f, 1);
            if b.is_ok_and(|b| !b.block.ops.iter().any(|o| o.op == Opcode::Raise && o.imm & 0xff == 6)) {
                wrong.push(format!("{name}: {:?}", i.code()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} run all the same: {:?}", wrong.len(), &wrong[..wrong.len().min(20)]);
}
