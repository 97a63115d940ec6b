//! What each CPU model shows, beside what it showed when somebody looked at it: `golden/MODEL.txt`.
//!
//! `ANURA_BLESS=1` writes the files anew.
#![forbid(unsafe_code)]

use anura_x86::cpuid::Asker;
use anura_x86::{CpuModel, Feature, FeatureSet, Topology};
use std::fmt::Write as _;
use std::path::Path;

fn leaves(m: &CpuModel) -> String {
    let topology = Topology { sockets: 1, cores: 2, threads: 2 };
    let who = Asker {
        apic_id: 1,
        topology,
        osxsave: true,
        ospke: false,
        xcr0: m.xcr0_supported(),
        apic_enabled: true,
    };
    let subleaves = |leaf: u32| match leaf {
        4 | 0xb | 0xd => 4,
        7 => 2,
        _ => 1,
    };
    let mut out = String::new();
    let basic = 0..=m.level;
    let extended = 0x8000_0000..=m.xlevel.max(0x8000_0000);
    for leaf in basic.chain(extended).chain([0x4000_0000, 0x4000_0001, m.level + 1, m.xlevel.wrapping_add(1)])
    {
        for subleaf in 0..subleaves(leaf) {
            let [a, b, c, d] = m.cpuid(leaf, subleaf, &who);
            let _ = writeln!(out, "{leaf:08x}.{subleaf} {a:08x} {b:08x} {c:08x} {d:08x}");
        }
    }
    out
}

#[test]
fn every_model_shows_the_leaves_that_are_written_down() {
    let bless = std::env::var_os("ANURA_BLESS").is_some();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut wrong = vec![];
    for name in CpuModel::names() {
        let parsed = CpuModel::parse(name, &FeatureSet::available()).expect("a model that exists");
        let mut text = leaves(&parsed.model);
        for w in &parsed.warnings {
            text += &format!("{w}\n");
        }
        let file = dir.join(format!("{name}.txt"));
        if bless {
            std::fs::write(&file, &text).expect("the golden folder is writable");
        } else if std::fs::read_to_string(&file).ok().as_deref() != Some(&text) {
            wrong.push(name);
        }
    }
    assert!(
        wrong.is_empty(),
        "other leaves than in golden/ (ANURA_BLESS=1 writes them): {}",
        wrong.join(" ")
    );
}

#[test]
fn no_model_shows_a_feature_that_is_not_emulated() {
    let available = FeatureSet::available();
    for name in CpuModel::names() {
        let m = CpuModel::parse(name, &available).expect("a model that exists").model;
        // A board may add TOPOEXT by hand; no model has it by itself.
        let extra: Vec<_> = m.features.iter().filter(|f| !available.has(*f)).map(Feature::name).collect();
        assert!(extra.is_empty(), "{name} shows {}", extra.join(" "));
    }
}
