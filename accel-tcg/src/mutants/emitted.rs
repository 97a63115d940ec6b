//! Mistakes of the emitter: host instructions that come out otherwise while one kind of operation is being written.
//!
//! Where [`Buf`](crate::jit) encodes an instruction it asks [`slips`] whether it is to go wrong. A mistake is a pair of
//! operation and [`Slip`]; which pairs there are shows when code is written, see `seen`.

use crate::ir::Opcode;

/// How an instruction goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Slip {
    /// 32 bits for 64, and 64 for 32.
    Width,
    /// Another operation of its group.
    Operation,
    /// The opposite condition.
    Opposite,
    /// A condition like it: signed for unsigned, sign for overflow.
    Neighbour,
    /// An immediate operand that is one too great.
    Immediate,
    /// A constant that is one too great.
    Constant,
    /// A store of another constant.
    Stored,
    /// The field behind, in the environment.
    Field,
    /// No load or move.
    NoLoad,
    /// No store.
    NoStore,
    /// Zeros for the sign, and the other way round.
    Extension,
    /// No byte from a condition.
    NoSet,
    /// No conditional move.
    NoMove,
    /// The exchanged operands of a three-operand instruction.
    Exchanged,
}

impl Slip {
    #[cfg(feature = "mutants")]
    const ALL: [(Slip, &str); 14] = [
        (Slip::Width, "has another width"),
        (Slip::Operation, "is another of its group"),
        (Slip::Opposite, "has the opposite condition"),
        (Slip::Neighbour, "has a similar condition"),
        (Slip::Immediate, "has an immediate that is one off"),
        (Slip::Constant, "has a constant that is one off"),
        (Slip::Stored, "stores another constant"),
        (Slip::Field, "uses the field behind"),
        (Slip::NoLoad, "is a move that is left out"),
        (Slip::NoStore, "is a store that is left out"),
        (Slip::Extension, "extends the other way"),
        (Slip::NoSet, "is a SETcc that is left out"),
        (Slip::NoMove, "is a CMOVcc that is left out"),
        (Slip::Exchanged, "has its sources exchanged"),
    ];
}

/// Whether the instruction that is about to be encoded goes wrong in this way.
#[inline(always)]
pub fn slips(slip: Slip) -> bool {
    #[cfg(feature = "mutants")]
    return recording::slips(slip);
    #[cfg(not(feature = "mutants"))]
    {
        let _ = slip;
        false
    }
}

/// What is encoded from now on belongs to such an operation.
#[inline(always)]
pub fn begin(op: Option<Opcode>) {
    #[cfg(feature = "mutants")]
    recording::begin(op);
    #[cfg(not(feature = "mutants"))]
    let _ = op;
}

#[cfg(feature = "mutants")]
pub use recording::seen;

#[cfg(feature = "mutants")]
mod recording {
    use super::Slip;
    use crate::ir::Opcode;
    use crate::mutants::{Mutant, active};
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Number of the first mistake; there are 32 numbers for each operation.
    const FIRST: u32 = 10_000;
    const OPS: usize = 256;

    /// The mistakes that could have been made, a word for each operation.
    static SEEN: [AtomicU32; OPS] = [const { AtomicU32::new(0) }; OPS];

    thread_local! {
        static NOW: Cell<Option<u32>> = const { Cell::new(None) };
    }

    pub fn begin(op: Option<Opcode>) {
        NOW.set(op.map(|op| op as u32));
    }

    pub fn slips(slip: Slip) -> bool {
        let Some(op) = NOW.get() else { return false };
        // Elsewhere bits above an operand's width may be anything.
        let extends = op == Opcode::Zext as u32 || op == Opcode::Sext as u32;
        if slip == Slip::Extension && !extends {
            return false;
        }
        SEEN[op as usize].fetch_or(1 << slip as u32, Ordering::Relaxed);
        active() == FIRST + op * 32 + slip as u32
    }

    /// The mistakes that can be made in what was written until now.
    pub fn seen() -> Vec<(Mutant, String)> {
        let mut all = vec![];
        for op in Opcode::ALL {
            let bits = SEEN[*op as usize].load(Ordering::Relaxed);
            for (slip, text) in Slip::ALL.into_iter().filter(|(s, _)| bits >> *s as u32 & 1 != 0) {
                let id = FIRST + *op as u32 * 32 + slip as u32;
                all.push((Mutant(id), format!("emitted for {}: an instruction {text}", op.info().name)));
            }
        }
        all
    }
}
