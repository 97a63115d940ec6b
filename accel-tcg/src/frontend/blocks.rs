//! Cuts guest bytes into blocks.
//!
//! A block ends at a control transfer, at an instruction that may change the mode, at the page's end, at 64
//! instructions or when it has grown long. An instruction that crosses the page's end stands alone in its block.

use super::decode::{DecodeError, decode, decoder};
use super::effects::Features;
use super::{Builder, build};
use crate::ir::Block;

/// Operations after which no further instruction is begun.
const MANY_OPS: usize = 448;

/// A block and what it was made from.
#[derive(Debug)]
pub struct Built {
    /// The block.
    pub block: Block,
    /// It needs bytes of the second page.
    pub crosses: bool,
}

/// Where the bytes of a block's first page come from.
pub trait Source {
    /// The bytes from an offset to the block's start on: at least an instruction's, unless the page ends before.
    fn ahead(&mut self, at: usize) -> &[u8];
}

impl Source for &[u8] {
    fn ahead(&mut self, at: usize) -> &[u8] {
        &self[at.min(self.len())..]
    }
}

/// Builds the block at `va` (RIP). `first` are the bytes from there to the end of its page; `second` gets the bytes
/// of the next page, or fails as a fetch from it fails, and is asked only if the first instruction needs it.
pub fn build<F>(
    mut first: &[u8],
    second: impl FnOnce() -> Result<[u8; 15], F>,
    place: (u64, u64, u32),
    features: &Features,
    max_insns: usize,
) -> Result<Built, F> {
    build_in(Block::default(), &mut first, second, place, features, max_insns)
}

/// The same in the memory of another block.
pub fn build_in<F>(
    memory: Block,
    first: &mut impl Source,
    second: impl FnOnce() -> Result<[u8; 15], F>,
    place: (u64, u64, u32),
    features: &Features,
    max_insns: usize,
) -> Result<Built, F> {
    let (_, va, key) = place;
    let mut b = Builder::new(memory, place, features);
    let mut second = Some(second);
    let mut crosses = false;
    while !b.ended {
        let at = b.block.len() as usize;
        let rest = first.ahead(at);
        let rip = va.wrapping_add(at as u64);
        // One decoder for all instructions that lie in these bytes for sure.
        let mut d = decoder(rest, rip, key, features);
        let mut known = true;
        while !b.ended
            && known
            && let Some(bytes) = rest.get(d.position()..).and_then(|rest| rest.first_chunk())
        {
            d.decode_out(&mut b.i);
            known = !b.i.is_invalid();
            if known {
                b.begin_decoded(*bytes);
                instruction(&mut b, false, max_insns);
            }
        }
        if b.ended || known && d.position() > 0 {
            continue;
        }
        let rest = &rest[b.block.len() as usize - at..];
        let at = b.block.len() as usize;
        let rip = va.wrapping_add(at as u64);
        let mut bytes = [0; 15];
        let n = rest.len().min(15);
        bytes[..n].copy_from_slice(&rest[..n]);
        let mut result =
            if n == 0 { Err(DecodeError::More) } else { decode(&bytes[..n], rip, key, features) };
        if result == Err(DecodeError::More) {
            let Some(fetch) = second.take_if(|_| b.block.is_empty()) else {
                let next = va.wrapping_add(at as u64);
                b.jump(if b.is64() { next } else { next & 0xffff_ffff });
                break;
            };
            let more = fetch()?;
            bytes[n..].copy_from_slice(&more[..15 - n]);
            crosses = true;
            result = decode(&bytes, rip, key, features);
        }
        match result {
            Ok(i) => {
                b.begin(i, bytes);
                instruction(&mut b, crosses, max_insns);
            }
            Err(e) => {
                b.begin_invalid(if crosses { 15 } else { n });
                match e {
                    DecodeError::TooLong => b.raise(13, true),
                    _ => b.ud(),
                }
            }
        }
    }
    Ok(Built { block: b.block, crosses })
}

/// Writes the operations of an instruction that has begun, and those of the block's end if it is the last one.
fn instruction(b: &mut Builder<'_>, crosses: bool, max_insns: usize) {
    if b.features.allow(&b.i) {
        build::instruction(b);
    } else {
        b.ud();
    }
    if b.ended {
        return;
    }
    if b.end_after {
        b.exit();
    } else if crosses || b.block.insns.len() >= max_insns.min(64) || b.block.ops.len() >= MANY_OPS {
        let next = b.next_rip();
        b.jump(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::print;
    use crate::mode::key;

    /// Gives no more than it must.
    struct Sparing<'a>(&'a [u8]);

    impl Source for Sparing<'_> {
        fn ahead(&mut self, at: usize) -> &[u8] {
            let rest = &self.0[at.min(self.0.len())..];
            &rest[..rest.len().min(15)]
        }
    }

    #[test]
    fn blocks_are_the_same_however_much_is_read_ahead() {
        let mut seed = 1u64;
        let mut next = || {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (seed >> 33) as u8
        };
        let features = Features::all();
        for round in 0..3000 {
            // Instructions without prefixes are short, bytes at random soon end a block.
            let common = [0x90, 0x50, 0x89, 0xc8, 0x48, 0x8b, 0x40, 0x66, 0x01, 0xb8, 0x0f, 0xaf];
            let bytes: Vec<u8> = (0..200)
                .map(|_| if next() & 31 != 0 { common[usize::from(next()) % common.len()] } else { next() })
                .collect();
            let place = (0, 0x1000, if round & 1 != 0 { key::L64 } else { key::CODE32 });
            let none = || -> Result<[u8; 15], ()> { Err(()) };
            let all = build(&bytes, none, place, &features, 64);
            let sparing = build_in(Block::default(), &mut Sparing(&bytes), none, place, &features, 64);
            let text = |b: Result<Built, ()>| b.map(|b| (print::block(&b.block), b.crosses));
            assert_eq!(text(all), text(sparing), "{bytes:02x?}");
        }
    }

    #[test]
    fn what_is_no_instruction_covers_every_byte_that_could_make_it_one() {
        let mut bytes = [0x90; 32];
        bytes[1] = 0xff;
        bytes[2] = 0xff;
        let none = || -> Result<[u8; 15], ()> { Err(()) };
        let built = build(&bytes, none, (0, 0, key::L64), &Features::all(), 64).unwrap();
        assert_eq!((built.block.insns.len(), built.block.len()), (2, 16));
        let built = build(&bytes[..4], none, (0, 0, key::L64), &Features::all(), 64).unwrap();
        assert_eq!(built.block.len(), 4);
    }
}
