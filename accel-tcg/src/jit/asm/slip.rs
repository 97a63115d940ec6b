//! Mistakes on purpose; see [`crate::mutants::emitted`].

use super::{Cond, Mem, Rm, Slip, reg, slips};

/// The next field of the environment.
#[inline(always)]
pub fn field(mut rm: Rm) -> Rm {
    if let Rm::Mem(m @ Mem { base: reg::RSP, index: None, .. }) = &mut rm
        && slips(Slip::Field)
    {
        m.disp += 8;
    }
    rm
}

/// What each operation becomes; comparisons stay, since nothing else leaves its operand alone.
pub const ALU: [u8; 8] = [5, 6, 0, 5, 1, 0, 1, 7];
pub const SHIFT: [u8; 8] = [1, 0, 3, 2, 5, 4, 4, 5];
pub const BIT: [u8; 8] = [0, 1, 2, 3, 5, 6, 7, 5];

#[inline(always)]
pub fn operation(n: u8, other: [u8; 8]) -> u8 {
    let changed = other[usize::from(n & 7)];
    if changed != n && slips(Slip::Operation) { changed } else { n }
}

#[inline(always)]
pub fn constant(v: i32, slip: Slip) -> i32 {
    // Records of the flags have their kind from bit 2 on, and some kinds have no use for the bits below.
    let change = if slip == Slip::Stored { 5 } else { 1 };
    if slips(slip) { v ^ change } else { v }
}

#[inline(always)]
pub fn condition(c: Cond) -> Cond {
    use Cond::*;
    if slips(Slip::Opposite) {
        return Cond::ALL[c as usize ^ 1];
    }
    if slips(Slip::Neighbour) {
        return match c {
            O => S,
            No => Ns,
            B => L,
            Ae => Ge,
            Z => B,
            Nz => Ae,
            Be => Le,
            A => G,
            S => O,
            Ns => No,
            P => Z,
            Np => Nz,
            L => B,
            Ge => Ae,
            Le => Be,
            G => A,
        };
    }
    c
}
