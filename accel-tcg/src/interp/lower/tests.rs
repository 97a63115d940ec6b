//! Random bytes go through all stages and hold the rules.

use super::*;
use crate::frontend::blocks;
use crate::frontend::effects::Features;
use crate::interp::thunk::Arena;
use crate::testbed::Numbers;
use crate::{ir, opt};

#[test]
fn any_bytes_in_any_mode_become_a_block_that_holds_the_rules() {
    let mut n = Numbers(0x1234_5678_9abc_def1);
    let mut features = Features::all();
    let mut arena = Arena::new().ok();
    let prefixes = [0x66, 0xf2, 0xf3, 0x67, 0xf0, 0x48, 0x64, 0xc4, 0xc5, 0x0f, 0x0f, 0x0f];
    for round in 0..60_000u64 {
        let mut bytes = [0u8; 48];
        for b in &mut bytes {
            let r = n.bits();
            *b = if r & 0x300 == 0 { prefixes[(r >> 16) as usize % prefixes.len()] } else { r as u8 };
        }
        let key = n.bits() as u32 & 0x1f_ffff;
        // 64-bit code is flat and in protected mode.
        let key = if key & key::L64 != 0 {
            key & !(key::CODE32 | key::STACK32 | key::V86) | key::PROT
        } else {
            key
        };
        features.amd = round & 1 != 0;
        let va = n.bits() & if key & key::L64 != 0 { 0x7fff_ffff_ffff } else { 0xffff_ffff };
        let second = || -> Result<[u8; 15], ()> { Ok([0x90; 15]) };
        let max = 1 + (round % 64) as usize;
        let built = blocks::build(&bytes, second, (0x1000, va, key), &features, max).unwrap();
        let mut block = built.block;
        let show = |b: &Block, e: ir::verify::Broken| panic!("{e}: {bytes:02x?}\n{}", ir::print::block(b));
        if let Err(e) = ir::verify::block(&block) {
            show(&block, e);
        }
        opt::flags::run(&mut block, opt::flags::Runner::Interpreter);
        if let Err(e) = ir::verify::block(&block) {
            show(&block, e);
        }
        let text = ir::print::block(&block);
        let again = ir::parse::block(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(ir::print::block(&again), text);
        if arena.as_ref().is_some_and(Arena::full) {
            arena = Arena::new().ok();
        }
        let code = lower(&block, arena.as_mut(), key, None);
        assert!(!code.ops.is_empty());
    }
}
