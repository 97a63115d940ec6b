//! Deliberate mistakes, to find out whether the comparison with the host would notice.
//!
//! With the feature `mutants` one of them at a time can be switched on; without it [`on`] is a constant. Four kinds:
//! points in the code that ask [`on`], each flag of each lazy flag record, each operation of the intermediate
//! language with another width, with its operands swapped, or without its flags, and what the JIT writes ([`emitted`]).

pub mod emitted;

/// A mistake's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mutant(pub u32);

/// The number of the one that is switched on; at the start it is that in `ANURA_MUTANT`, for programs that know of none.
#[cfg(feature = "mutants")]
static ACTIVE: std::sync::LazyLock<std::sync::atomic::AtomicU32> = std::sync::LazyLock::new(|| {
    let number = std::env::var("ANURA_MUTANT").ok().and_then(|n| n.parse().ok());
    std::sync::atomic::AtomicU32::new(number.unwrap_or(u32::MAX))
});

#[cfg(feature = "mutants")]
fn active() -> u32 {
    ACTIVE.load(std::sync::atomic::Ordering::Relaxed)
}

/// Whether a mistake is switched on.
#[inline(always)]
pub fn on(m: Mutant) -> bool {
    #[cfg(feature = "mutants")]
    {
        active() == m.0
    }
    #[cfg(not(feature = "mutants"))]
    {
        let _ = m;
        false
    }
}

/// The second value if the mistake is switched on, else the first.
#[inline(always)]
pub fn pick<T>(m: Mutant, right: T, wrong: T) -> T {
    if on(m) { wrong } else { right }
}

/// Switches a mistake on, or all off.
#[cfg(feature = "mutants")]
pub fn activate(m: Option<Mutant>) {
    ACTIVE.store(m.map_or(u32::MAX, |m| m.0), std::sync::atomic::Ordering::SeqCst);
}

macro_rules! named {
    ($($name:ident $text:literal;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "the names are those of constants")]
        #[repr(u32)]
        enum Index { $($name,)* }
        $(#[doc = $text] pub const $name: Mutant = Mutant(Index::$name as u32);)*
        #[cfg(feature = "mutants")]
        const NAMES: &[&str] = &[$($text,)*];
    };
}

named! {
    SSE_NO_IE "SIMD: invalid is not noted";
    SSE_NO_DE "SIMD: denormal is not noted";
    SSE_NO_ZE "SIMD: division by zero is not noted";
    SSE_NO_OE "SIMD: overflow is not noted";
    SSE_NO_UE "SIMD: underflow is not noted";
    SSE_NO_PE "SIMD: inexact is not noted";
    SSE_NO_XM "SIMD: unmasked exceptions do not fault";
    SSE_LATE_FLAGS "SIMD: exceptions of the result show beside unmasked ones of the operands";
    X87_NO_IE "x87: invalid is not noted";
    X87_NO_DE "x87: denormal is not noted";
    X87_NO_ZE "x87: division by zero is not noted";
    X87_NO_OE "x87: overflow is not noted";
    X87_NO_UE "x87: underflow is not noted";
    X87_NO_PE "x87: inexact is not noted";
    X87_NO_C1 "x87: C1 does not tell of rounding up";
    X87_NO_SF "x87: stack faults do not set SF";
    X87_NO_ES "x87: the summary bit stays clear";
    X87_OVERFLOW_C1 "x87: stack overflow clears C1";
    X87_STORES_INVALID "x87: an unmasked exception still writes the result";
    X87_PRECISION_24 "x87: single precision control is ignored";
    X87_PRECISION_53 "x87: double precision control is ignored";
    X87_SMALLER_NAN "x87: the smaller of two NaNs wins";
    X87_POP_KEEPS_TAG "x87: a pop leaves the register in use";
    X87_PUSH_ANYWHERE "x87: pushes do not look for a free register";
    X87_EMPTY_READ "x87: empty registers are read";
    X87_SUBR "x87: reversed subtraction is not reversed";
    X87_FXAM_ZERO "x87: FXAM takes zero for normal";
    X87_FXAM_EMPTY "x87: FXAM does not see empty registers";
    X87_FPREM_Q "x87: FPREM's quotient bits are in order";
    X87_FPREM_NEAREST "x87: FPREM1 truncates";
    X87_FPREM_STEP "x87: FPREM reduces by another step";
    X87_FBSTP_DIGITS "x87: FBSTP swaps digits";
    X87_FIST_LIMIT "integers one too great are stored";
    X87_FISTTP_ROUNDS "x87: FISTTP rounds";
    X87_CONSTANT_ROUNDING "x87: constants ignore the rounding mode";
    X87_FCOMI_FLAGS "x87: FCOMI gives equal for unordered";
    X87_FUCOM_SIGNALS "x87: FUCOM signals quiet NaNs";
    X87_FXTRACT_ZERO "x87: FXTRACT of zero raises nothing";
    X87_FSCALE_ROUNDS "x87: FSCALE adds one";
    X87_FSTENV_MASKS "x87: FNSTENV leaves the masks";
    X87_TAG_WORD "x87: the tag word calls zero valid";
    X87_FCMOV "x87: FCMOV moves on the opposite condition";
    X87_FST_UNDERFLOW "x87: FST stores after an unmasked underflow";
    TRIG_PI "x87: the reduction uses another pi";
    TRIG_QUADRANT "x87: cosine has the sign of sine";
    LOG_REDUCTION "x87: logarithms of numbers above the root of two";
    ROUND_TIES "ties round up, not to even";
    ROUND_NEAREST "to nearest truncates";
    ROUND_DOWN "down rounds towards zero";
    ROUND_UP "up rounds towards zero";
    ROUND_ZERO "towards zero rounds to nearest";
    ROUND_STICKY "bits shifted out are forgotten";
    ROUND_TWICE "denormals are rounded twice";
    ROUND_TINY_BEFORE "tininess is detected before rounding";
    ROUND_OVERFLOW_INF "overflow is always infinite";
    ROUND_NO_FTZ "flush-to-zero is ignored";
    ROUND_NO_DAZ "denormals-are-zeros is ignored";
    ROUND_UNMASKED_TINY "an exact tiny result is no unmasked underflow";
    FP_SUM_SIGN "an exact zero sum is always positive";
    FP_INF_SUB "infinity minus infinity is infinite";
    FP_ZERO_BY_ZERO "zero by zero is infinite";
    FP_MUL_EXP "products lose their lowest bit";
    FP_DIV_STICKY "quotients look exact";
    FP_SQRT_GUARD "roots lose their guard bit";
    FP_SQRT_NEGATIVE "roots of negative numbers are taken of the magnitude";
    FP_INDEFINITE "the NaN of invalid operations is positive";
    FP_FMA_TWICE "fused sums are rounded in between";
    FP_COMPARE_ZERO "minus zero is less than zero";
    FP_NAN_SECOND "SIMD: the second of two NaNs wins";
    FP_SNAN_QUIET "SIMD: signalling NaNs raise nothing";
    FP_MIN_TIE "SIMD: MIN and MAX give the first of equal operands";
    FP_CMP_QUIET "SIMD: comparison predicates signal the other way";
    FP_CMP_UNORDERED "SIMD: NEQ is false for unordered";
    FP_UCOMI "SIMD: UCOMISS signals quiet NaNs";
    FP_ROUND_PE "SIMD: ROUNDPS reports inexact where told not to";
    FP_ROUND_MODE "SIMD: ROUNDPS ignores its own rounding mode";
    FP_CVTT "SIMD: truncating conversions round";
    FP_CVT_INDEFINITE "SIMD: too great integers become zero";
    FP_CVT_HALF_DENORMAL "SIMD: denormal halves raise the denormal flag";
    FP_ADDSUB "SIMD: ADDSUBPS adds in even lanes";
    FP_HADD_ORDER "SIMD: HADDPS takes the halves the other way round";
    FP_FMA_FORM "SIMD: 213 forms are 231 forms";
    FP_FMA_NEGATE "SIMD: FNMADD is FMADD";
    FP_DP_MASK "SIMD: DPPS ignores the low mask";
    FP_RCP "RCPPS is off by one in the last place";
    FP_RSQRT "RSQRTPS is off by one in the last place";
    FP_SCALAR_UPPER "SIMD: scalar operations clear the rest";
    V_VEX_UPPER "VEX-encoded instructions keep the upper half";
    V_LEGACY_UPPER "legacy instructions clear the upper half";
    V_PSHUFB "PSHUFB ignores the top bit";
    V_SHIFT_COUNT "vector shift counts wrap";
    V_SRA_COUNT "vector arithmetic shift counts do not saturate";
    V_PADDS "PADDSW does not saturate";
    V_PADDUS "unsigned saturation ends one early";
    V_PACKUS "PACKUSWB saturates as signed";
    V_PACK_LANES "packs take both halves from the first";
    V_PMULHRSW "PMULHRSW does not round";
    V_PMADDWD "PMADDWD takes the high words unsigned";
    V_PMADDUBSW "PMADDUBSW takes both signed";
    V_PAVG "PAVG truncates";
    V_PSIGN "PSIGN by zero keeps the value";
    V_PABS "PABS clears the sign bit only";
    V_PCMPGT "PCMPGT is unsigned";
    V_PMINUW "unsigned minima are maxima";
    V_PSADBW "PSADBW forgets absolute values";
    V_MPSADBW "MPSADBW ignores its second selector";
    V_PHMINPOS "PHMINPOSUW finds the last minimum";
    V_PHADD "PHADDW of the second comes first";
    V_PALIGNR "PALIGNR beyond the first operand wraps";
    V_PSLLDQ "PSLLDQ by 16 and more is by 15";
    V_BLEND "BLENDPS selects the other way";
    V_BLENDV "BLENDVPS looks at the lowest bit of the byte";
    V_SHUFPS "SHUFPS takes all from the first";
    V_UNPCK "PUNPCKH takes the low half";
    V_PSHUFHW "PSHUFHW shuffles the low words";
    V_PERM2F128 "VPERM2F128 ignores its zero bits";
    V_VPERMD "VPERMD stays in its half";
    V_VPERMILPD "VPERMILPD looks at the lowest bit";
    V_EXTRACT128 "VEXTRACTF128 gives the low half";
    V_BROADCAST "broadcasts leave the upper half alone";
    V_PMOVSX "PMOVSX extends with zeros";
    V_INSERTPS "INSERTPS ignores its zero mask";
    V_PINSRW "PINSRW takes one lane too far";
    V_PEXTRW "PEXTRW takes one lane too far";
    V_MOVMSK "MOVMSKPS looks at the next bit";
    V_PTEST_CF "PTEST computes CF like ZF";
    V_MOVSS_LOAD "MOVSS from memory keeps the rest";
    V_MOVHLPS "MOVHPS writes the low half";
    V_MMX_TOP "MMX instructions leave the x87's top alone";
    V_MMX_EXPONENT "MMX writes leave the exponent";
    V_EMMS "EMMS leaves a register in use";
    V_ZEROUPPER "VZEROUPPER forgets the last register";
    S_POLARITY "PCMPISTRI ignores masked polarity";
    S_LENGTH "PCMPESTRI does not limit its lengths";
    S_RANGES "PCMPISTRI ranges end one early";
    S_ORDERED "PCMPISTRI equal-ordered forgets the end";
    S_INDEX "PCMPISTRI gives the first for the last index";
    S_FLAGS "PCMPISTRI swaps ZF and SF";
    C_AES_SHIFT "AESENC shifts rows the other way";
    C_AES_MIX "AESDEC mixes with the forward matrix";
    C_AES_KEY "AESKEYGENASSIST forgets its constant";
    C_CLMUL "PCLMULQDQ ignores its second selector";
    C_SHA1_F "SHA1RNDS4 uses parity for majority";
    C_SHA1_K "SHA1RNDS4 uses the first constant";
    C_SHA256_SIGMA "SHA256MSG1 rotates by one less";
    C_SHA256_CH "SHA256RNDS2 swaps e and f";
    C_GFNI "GF2P8AFFINEQB reads the matrix from below";
    M_ALIGN "16-byte operands need no alignment";
    M_WAIT "a pending x87 exception does not trap";
    M_NO_STORE "a store that an exception forbids happens";
    I_SHIFT_MASK "shift counts are masked to eight bits";
    I_SHIFT_ZERO "a shift by zero changes the flags";
    I_SHIFT_CF "SHL takes CF one bit off";
    I_SAR_SIGN "SAR shifts in zeros";
    I_ROL_OF "ROL computes OF from the lowest bit alone";
    I_RCL_MOD "RCL by a count modulo the width";
    I_SHLD_CF "SHLD takes CF from the filler";
    I_MUL_OF "MUL never overflows";
    I_DIV_OVERFLOW "a quotient that does not fit is truncated";
    I_DIV_ZERO "division by zero is not checked";
    I_CRC32 "CRC32 uses another polynomial";
    I_MERGE16 "16-bit writes clear the upper half";
    J_SHELTER "translated code: operands of the flags change before the flags are wanted";
    J_MATERIALIZE "translated code: the note on the flags is not written down";
    J_RECIPE "translated code: places to leave at do not bring the flags home";
    J_HOST "translated code: the host is said to have all flags";
    J_CARRY "translated code: INC and DEC lose the carry";
    J_LOOK_PAGE "translated code: accesses may leave the page that was looked up";
    J_NEAR_TOUCHED "translated code: a look is used again though its registers have changed";
    J_NEAR_PAGE "translated code: an access near another may be in another page";
    J_GROUP_SPAN "translated code: a group of accesses is checked as one of its members";
    J_WINDOW_PAGE "translated code: an access through a window may leave its page";
    J_WINDOW_OWNER "translated code: windows keep their owner over calls";
    J_WINDOWS_OPEN "translated code: windows stay open when the TLB changes";
    J_LENT_SITES "translated code: borrowed registers are not given back where loops are left in the middle";
    J_LENT_EXITS "translated code: borrowed registers are not given back where loops end";
    J_LEFT "translated code: an instruction too many is counted where blocks are left in the middle";
}

#[cfg(feature = "mutants")]
pub use ir::{alter, catalogue, emitter};

/// Flags of the record `op` (kind and width) with a mistake in one of them.
#[inline(always)]
pub fn flags(op: u32, image: u32) -> u32 {
    #[cfg(feature = "mutants")]
    {
        let kind = (op >> 2).wrapping_sub(1);
        if let Some(n) = active().checked_sub(ir::FLAGS)
            && n < 48
            && kind == n / 6
        {
            return image ^ ir::BITS[(n % 6) as usize];
        }
    }
    let _ = op;
    image
}

#[cfg(feature = "mutants")]
mod ir {
    use super::{Mutant, NAMES, active};
    use crate::ir::op::flag;
    use crate::ir::{Attr, Block, Opcode, Ref, Ty};
    pub const FLAGS: u32 = 1000;
    const OPS: u32 = 2000;
    pub const BITS: [u32; 6] = [flag::CF, flag::PF, flag::AF, flag::ZF, flag::SF, flag::OF];
    const KINDS: [&str; 8] =
        ["add", "add with carry", "sub", "sub with borrow", "logic", "inc", "dec", "shift"];

    /// Operations whose width is changed.
    #[rustfmt::skip]
    const WIDTH: &[Opcode] = {
        use Opcode::*;
        &[
            Mov, Zext, Sext, Add, Adc, Sub, Sbb, And, Or, Xor, Cmp, Test, Neg, Not, Inc, Dec, Shl, Shr, Sar, Rol, Ror,
            Rcl, Rcr, Shld, Shrd, Mul, Imul, Umulh, Smulh, Div, Idiv, Bt, Bts, Btr, Btc, Bsf, Bsr, Lzcnt, Tzcnt, Popcnt,
            Bswap, Andn, Blsr, Blsi, Blsmsk, Bextr, Bzhi, Pdep, Pext, Adcx, Adox, Ld, St, RmwAdd, RmwSub, RmwAnd, RmwOr,
            RmwXor, RmwAdc, RmwSbb, RmwInc, RmwDec, RmwNeg, RmwNot, RmwXchg, RmwBts, RmwBtr, RmwBtc, RmwCmpxchg,
        ]
    };
    /// Operations whose operands are swapped.
    #[rustfmt::skip]
    const SWAP: &[Opcode] = {
        use Opcode::*;
        &[Sub, Sbb, Cmp, Shl, Shr, Sar, Rol, Ror, Rcl, Rcr, Shld, Shrd, Bt, Bts, Btr, Btc, Andn, Bextr, Bzhi, Pdep, Pext, Select]
    };
    /// Operations that lose their flags.
    #[rustfmt::skip]
    const SILENT: &[Opcode] = {
        use Opcode::*;
        &[
            Add, Adc, Sub, Sbb, And, Or, Xor, Cmp, Test, Neg, Inc, Dec, Shl, Shr, Sar, Rol, Ror, Rcl, Rcr, Shld, Shrd, Mul,
            Imul, Bt, Bts, Btr, Btc, Bsf, Bsr, Lzcnt, Tzcnt, Popcnt, Andn, Blsr, Blsi, Blsmsk, Bextr, Bzhi, RmwAdd, RmwSub,
            RmwAnd, RmwOr, RmwXor, RmwInc, RmwDec, RmwNeg, RmwCmpxchg,
        ]
    };

    /// How the names of points in the emitter begin.
    const EMITTER: &str = "translated code:";

    fn named(emitter: bool) -> Vec<(Mutant, String)> {
        let all = NAMES.iter().enumerate().filter(|(_, t)| t.starts_with(EMITTER) == emitter);
        all.map(|(n, t)| (Mutant(n as u32), (*t).to_owned())).collect()
    }

    /// Every mistake of the emitter with its name, as far as what was written until now could have shown it.
    pub fn emitter() -> Vec<(Mutant, String)> {
        let mut all = named(true);
        all.extend(super::emitted::seen());
        all
    }

    /// Every mistake of the front end and the interpreter with its name.
    pub fn catalogue() -> Vec<(Mutant, String)> {
        let mut all = named(false);
        for (k, kind) in KINDS.iter().enumerate() {
            for (n, name) in ["CF", "PF", "AF", "ZF", "SF", "OF"].iter().enumerate() {
                all.push((Mutant(FLAGS + (k * 6 + n) as u32), format!("{name} of {kind} is inverted")));
            }
        }
        for (form, (ops, text)) in
            [(WIDTH, "has another width"), (SWAP, "swaps its operands"), (SILENT, "loses its flags")]
                .iter()
                .enumerate()
        {
            for (n, op) in ops.iter().enumerate() {
                let id = OPS + form as u32 * 200 + n as u32;
                all.push((Mutant(id), format!("operation {} {text}", op.info().name)));
            }
        }
        all
    }

    /// Puts the active mistake into a block.
    pub fn alter(b: &mut Block) {
        let Some(n) = active().checked_sub(OPS).filter(|n| *n < 600) else { return };
        let ops = [WIDTH, SWAP, SILENT][n as usize / 200];
        let Some(which) = ops.get(n as usize % 200) else { return };
        for o in b.ops.iter_mut().filter(|o| o.op == *which) {
            match n / 200 {
                0 => {
                    o.ty = match o.ty {
                        Ty::I64 => Ty::I32,
                        Ty::I32 => Ty::I16,
                        Ty::I16 => Ty::I8,
                        Ty::I8 => Ty::I16,
                        Ty::V128 => Ty::V128,
                    }
                }
                1 if o.b != Ref::NONE => std::mem::swap(&mut o.a, &mut o.b),
                1 => {}
                _ => o.attr = Attr(o.attr.0 & !Attr::FLAGS),
            }
        }
    }
}
