//! Cuts guest bytes into blocks.
//!
//! A block ends at a control transfer, at an instruction that may change the mode, at the page's end, at 64
//! instructions or when it has grown long. An instruction that crosses the page's end stands alone in its block.

use super::decode::{DecodeError, decode};
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

/// Builds the block at `va` (RIP). `first` are the bytes from there to the end of its page; `second` gets the bytes
/// of the next page, or fails as a fetch from it fails, and is asked only if the first instruction needs it.
pub fn build<F>(
    first: &[u8],
    second: impl FnOnce() -> Result<[u8; 15], F>,
    (pa, va, key): (u64, u64, u32),
    features: &Features,
    max_insns: usize,
) -> Result<Built, F> {
    let mut b = Builder::new(pa, va, key, features);
    let mut at = 0;
    let mut second = Some(second);
    let mut crosses = false;
    while !b.ended {
        let rest = &first[at.min(first.len())..];
        let mut bytes = [0; 15];
        let n = rest.len().min(15);
        bytes[..n].copy_from_slice(&rest[..n]);
        let rip = va.wrapping_add(at as u64);
        let mut result =
            if n == 0 { Err(DecodeError::More) } else { decode(&bytes[..n], rip, key, features) };
        if result == Err(DecodeError::More) {
            let Some(fetch) = second.take_if(|_| b.block.is_empty()) else {
                let next = b.next_rip();
                b.jump(next);
                break;
            };
            let more = fetch()?;
            bytes[n..].copy_from_slice(&more[..15 - n]);
            crosses = true;
            result = decode(&bytes, rip, key, features);
        }
        match result {
            Ok(i) => {
                at += i.len();
                b.begin(i, bytes);
                if features.allow(&i) {
                    build::instruction(&mut b);
                } else {
                    b.ud();
                }
            }
            Err(e) => {
                b.begin_invalid(if crosses { 15 } else { n });
                match e {
                    DecodeError::TooLong => b.raise(13, true),
                    _ => b.ud(),
                }
            }
        }
        if b.ended {
            break;
        }
        if b.end_after {
            b.exit();
        } else if crosses || b.block.insns.len() >= max_insns.min(64) || b.block.ops.len() >= MANY_OPS {
            let next = b.next_rip();
            b.jump(next);
        }
    }
    Ok(Built { block: b.block, crosses })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::key;

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
