//! Operations, types, references and blocks.

use std::fmt;

/// The six status flags, at their EFLAGS positions.
pub mod flag {
    /// Carry.
    pub const CF: u32 = 1;
    /// Parity.
    pub const PF: u32 = 1 << 2;
    /// Auxiliary carry.
    pub const AF: u32 = 1 << 4;
    /// Zero.
    pub const ZF: u32 = 1 << 6;
    /// Sign.
    pub const SF: u32 = 1 << 7;
    /// Overflow.
    pub const OF: u32 = 1 << 11;
    /// All six.
    pub const ALL: u32 = CF | PF | AF | ZF | SF | OF;
}

/// Operand width of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Ty {
    /// 8 bits.
    I8,
    /// 16 bits.
    I16,
    /// 32 bits.
    I32,
    /// 64 bits.
    I64,
    /// A 128-bit vector.
    V128,
}

impl Ty {
    /// All types, in encoding order.
    pub const ALL: [Ty; 5] = [Ty::I8, Ty::I16, Ty::I32, Ty::I64, Ty::V128];

    /// Name in the text form.
    pub fn name(self) -> &'static str {
        ["i8", "i16", "i32", "i64", "v128"][self as usize]
    }

    /// Size in bytes.
    pub fn bytes(self) -> u32 {
        1 << self as u32
    }

    /// Size in bits.
    pub fn bits(self) -> u32 {
        8 << self as u32
    }

    /// The integer type of so many bytes.
    pub fn from_bytes(n: usize) -> Option<Ty> {
        Some(match n {
            1 => Ty::I8,
            2 => Ty::I16,
            4 => Ty::I32,
            8 => Ty::I64,
            16 => Ty::V128,
            _ => return None,
        })
    }

    /// Mask of the value bits of an integer type.
    pub fn mask(self) -> u64 {
        match self {
            Ty::I8 => 0xff,
            Ty::I16 => 0xffff,
            Ty::I32 => 0xffff_ffff,
            Ty::I64 | Ty::V128 => !0,
        }
    }
}

/// Condition codes in the order of their x86 encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Cond {
    O,
    No,
    B,
    Ae,
    Z,
    Nz,
    Be,
    A,
    S,
    Ns,
    P,
    Np,
    L,
    Ge,
    Le,
    G,
}

impl Cond {
    /// All conditions by encoding.
    pub const ALL: [Cond; 16] = [
        Cond::O,
        Cond::No,
        Cond::B,
        Cond::Ae,
        Cond::Z,
        Cond::Nz,
        Cond::Be,
        Cond::A,
        Cond::S,
        Cond::Ns,
        Cond::P,
        Cond::Np,
        Cond::L,
        Cond::Ge,
        Cond::Le,
        Cond::G,
    ];

    /// Name in the text form.
    pub fn name(self) -> &'static str {
        ["o", "no", "b", "ae", "z", "nz", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g"]
            [self as usize]
    }

    /// The flags it looks at.
    pub fn reads(self) -> u32 {
        use flag::*;
        match self {
            Cond::O | Cond::No => OF,
            Cond::B | Cond::Ae => CF,
            Cond::Z | Cond::Nz => ZF,
            Cond::Be | Cond::A => CF | ZF,
            Cond::S | Cond::Ns => SF,
            Cond::P | Cond::Np => PF,
            Cond::L | Cond::Ge => SF | OF,
            Cond::Le | Cond::G => SF | OF | ZF,
        }
    }
}

/// A reference to a register, a temporary or a constant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ref(pub u16);

impl Ref {
    /// Nothing.
    pub const NONE: Ref = Ref(0xff);
    /// First temporary.
    pub const TEMP0: u16 = 0x100;
    /// First constant of the pool.
    pub const POOL0: u16 = 0x8000;

    /// General register by number.
    pub const fn gpr(n: u8) -> Ref {
        Ref(n as u16 & 15)
    }

    /// AH, CH, DH or BH by number 0 to 3.
    pub const fn high(n: u8) -> Ref {
        Ref(0x10 + (n as u16 & 3))
    }

    /// Base of a segment (ES CS SS DS FS GS = 0 to 5).
    pub const fn seg_base(n: u8) -> Ref {
        Ref(0x18 + n as u16)
    }

    /// Selector of a segment register, read only.
    pub const fn seg_sel(n: u8) -> Ref {
        Ref(0x38 + n as u16)
    }

    /// XMM register by number.
    pub const fn xmm(n: u8) -> Ref {
        Ref(0x20 + (n as u16 & 15))
    }

    /// The general register's number, if it is one.
    pub fn as_gpr(self) -> Option<u8> {
        (self.0 < 16).then_some(self.0 as u8)
    }

    /// The number of a high-byte register.
    pub fn as_high(self) -> Option<u8> {
        (0x10..0x14).contains(&self.0).then(|| (self.0 - 0x10) as u8)
    }

    /// The segment's number, if it is a segment base.
    pub fn as_seg_base(self) -> Option<u8> {
        (0x18..0x1e).contains(&self.0).then(|| (self.0 - 0x18) as u8)
    }

    /// The segment's number, if it is a selector.
    pub fn as_seg_sel(self) -> Option<u8> {
        (0x38..0x3e).contains(&self.0).then(|| (self.0 - 0x38) as u8)
    }

    /// The XMM register's number, if it is one.
    pub fn as_xmm(self) -> Option<u8> {
        (0x20..0x30).contains(&self.0).then(|| (self.0 - 0x20) as u8)
    }

    /// Index of the temporary, if it is one.
    pub fn as_temp(self) -> Option<u16> {
        (Self::TEMP0..Self::POOL0).contains(&self.0).then(|| self.0 - Self::TEMP0)
    }

    /// Index into the pool, if it is a constant.
    pub fn as_pool(self) -> Option<u16> {
        (self.0 >= Self::POOL0).then(|| self.0 - Self::POOL0)
    }

    /// A register that the guest can see.
    pub fn is_arch(self) -> bool {
        self.0 < 0x14 || self.as_xmm().is_some()
    }
}

impl fmt::Debug for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ref({:#x})", self.0)
    }
}

/// Small modifiers of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attr(pub u8);

impl Attr {
    /// The twin that also writes the flags.
    pub const FLAGS: u8 = 1;
    /// A LOCK-prefixed (or implicitly locked) memory operation.
    pub const LOCK: u8 = 2;
    /// An address made with the stack segment: a non-canonical one is #SS.
    pub const STACK: u8 = 4;
    /// The memory must be naturally aligned (legacy SSE): #GP otherwise.
    pub const ALIGNED: u8 = 8;
    /// Shift of the index by two bits, for `ea`.
    pub const SCALE_SHIFT: u32 = 6;

    /// The twin that also writes the flags.
    pub fn flags(self) -> bool {
        self.0 & Self::FLAGS != 0
    }

    /// LOCK-prefixed.
    pub fn lock(self) -> bool {
        self.0 & Self::LOCK != 0
    }

    /// Made with the stack segment.
    pub fn stack(self) -> bool {
        self.0 & Self::STACK != 0
    }

    /// Must be naturally aligned.
    pub fn aligned(self) -> bool {
        self.0 & Self::ALIGNED != 0
    }

    /// log2 of the index scale.
    pub fn scale(self) -> u8 {
        self.0 >> Self::SCALE_SHIFT
    }
}

/// What the `imm` field holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Imm {
    /// Nothing.
    None,
    /// A number.
    Num,
    /// A condition.
    Cond,
    /// The type converted from.
    From,
    /// A signed displacement, with the scale in the attributes.
    Disp,
    /// An index into the block's calls.
    Call,
    /// An index into the block's opaque instructions.
    Opaque,
}

/// What an operation does to the flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlagsForm {
    /// Neither reads nor writes them.
    None,
    /// Has a `.f` twin that writes these; the rest is kept (and so counts as read).
    Twin(u32),
    /// Like `Twin`, but what is written depends on run-time values: never kills.
    TwinMaybe,
    /// Always writes these, has no twin.
    Sets(u32),
    /// Reads by its condition.
    ByCond,
    /// Reads these.
    Reads(u32),
    /// May read and write everything.
    Any,
}

/// The row of an operation in the table.
#[derive(Debug)]
pub struct Info {
    /// Name in the text form.
    pub name: &'static str,
    /// Has a destination.
    pub dst: bool,
    /// How many of `a`, `b`, `c` it uses.
    pub args: u8,
    /// Meaning of `imm`.
    pub imm: Imm,
    /// Flags.
    pub flags: FlagsForm,
    /// Flags read beside the form (carry-in).
    pub carry_in: bool,
    /// Can raise a guest fault.
    pub faults: bool,
    /// Ends a block.
    pub ends: bool,
}

macro_rules! ops {
    ($($(#[$doc:meta])* $id:ident $name:literal dst=$dst:literal args=$args:literal imm=$imm:ident flags=$fl:expr, cin=$cin:literal faults=$faults:literal ends=$ends:literal;)*) => {
        /// Operation codes.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum Opcode { $($(#[$doc])* $id),* }

        impl Opcode {
            /// Every operation, in encoding order.
            pub const ALL: &'static [Opcode] = &[$(Opcode::$id),*];

            /// The operation's row.
            pub fn info(self) -> &'static Info {
                #[allow(unused_imports)]
                use FlagsForm::*;
                use flag::*;
                static INFO: &[Info] = &[$(Info { name: $name, dst: $dst, args: $args, imm: Imm::$imm, flags: $fl, carry_in: $cin, faults: $faults, ends: $ends }),*];
                &INFO[self as usize]
            }
        }
    };
}

#[rustfmt::skip]
mod table {
    use super::*;
ops! {
    /// dst = a
    Mov "mov" dst=true args=1 imm=None flags=None, cin=false faults=false ends=false;
    /// dst = zero-extended a of the type in `imm`
    Zext "zext" dst=true args=1 imm=From flags=None, cin=false faults=false ends=false;
    /// dst = sign-extended a of the type in `imm`
    Sext "sext" dst=true args=1 imm=From flags=None, cin=false faults=false ends=false;
    /// dst = a + b
    Add "add" dst=true args=2 imm=None flags=Twin(ALL), cin=false faults=false ends=false;
    /// dst = a - b
    Sub "sub" dst=true args=2 imm=None flags=Twin(ALL), cin=false faults=false ends=false;
    /// dst = a & b
    And "and" dst=true args=2 imm=None flags=Twin(ALL), cin=false faults=false ends=false;
    /// dst = a | b
    Or "or" dst=true args=2 imm=None flags=Twin(ALL), cin=false faults=false ends=false;
    /// dst = a ^ b
    Xor "xor" dst=true args=2 imm=None flags=Twin(ALL), cin=false faults=false ends=false;
    /// dst = a + b + CF
    Adc "adc" dst=true args=2 imm=None flags=Twin(ALL), cin=true faults=false ends=false;
    /// dst = a - b - CF
    Sbb "sbb" dst=true args=2 imm=None flags=Twin(ALL), cin=true faults=false ends=false;
    /// flags of a - b
    Cmp "cmp" dst=false args=2 imm=None flags=Twin(ALL), cin=false faults=false ends=false;
    /// flags of a & b
    Test "test" dst=false args=2 imm=None flags=Twin(ALL), cin=false faults=false ends=false;
    /// dst = -a
    Neg "neg" dst=true args=1 imm=None flags=Twin(ALL), cin=false faults=false ends=false;
    /// dst = !a
    Not "not" dst=true args=1 imm=None flags=None, cin=false faults=false ends=false;
    /// dst = a + 1, CF kept
    Inc "inc" dst=true args=1 imm=None flags=Twin(PF | AF | ZF | SF | OF), cin=false faults=false ends=false;
    /// dst = a - 1, CF kept
    Dec "dec" dst=true args=1 imm=None flags=Twin(PF | AF | ZF | SF | OF), cin=false faults=false ends=false;
    /// dst = a << b
    Shl "shl" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// dst = a >> b
    Shr "shr" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// dst = signed a >> b
    Sar "sar" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// Rotate left.
    Rol "rol" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// Rotate right.
    Ror "ror" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// Rotate left through carry.
    Rcl "rcl" dst=true args=2 imm=None flags=TwinMaybe, cin=true faults=false ends=false;
    /// Rotate right through carry.
    Rcr "rcr" dst=true args=2 imm=None flags=TwinMaybe, cin=true faults=false ends=false;
    /// dst = a shifted left by c, filled from b
    Shld "shld" dst=true args=3 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// dst = a shifted right by c, filled from b
    Shrd "shrd" dst=true args=3 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// Low half of the unsigned product; flags tell whether the high half is needed.
    Mul "mul" dst=true args=2 imm=None flags=Twin(ALL), cin=false faults=false ends=false;
    /// Low half of the signed product; flags tell whether the high half is needed.
    Imul "imul" dst=true args=2 imm=None flags=Twin(ALL), cin=false faults=false ends=false;
    /// High half of the unsigned product.
    Umulh "umulh" dst=true args=2 imm=None flags=None, cin=false faults=false ends=false;
    /// High half of the signed product.
    Smulh "smulh" dst=true args=2 imm=None flags=None, cin=false faults=false ends=false;
    /// rDX:rAX (AX for i8) by a, unsigned.
    Div "div" dst=false args=1 imm=None flags=Any, cin=false faults=true ends=false;
    /// rDX:rAX (AX for i8) by a, signed.
    Idiv "idiv" dst=false args=1 imm=None flags=Any, cin=false faults=true ends=false;
    /// CF = bit b of a
    Bt "bt" dst=false args=2 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// dst = a with bit b set, CF = old
    Bts "bts" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// dst = a with bit b clear, CF = old
    Btr "btr" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// dst = a with bit b flipped, CF = old
    Btc "btc" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// dst = lowest set bit of a, unchanged if none (all of it)
    Bsf "bsf" dst=true args=1 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// dst = highest set bit of a, unchanged if none (all of it)
    Bsr "bsr" dst=true args=1 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// Leading zeros.
    Lzcnt "lzcnt" dst=true args=1 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// Trailing zeros.
    Tzcnt "tzcnt" dst=true args=1 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// Set bits.
    Popcnt "popcnt" dst=true args=1 imm=None flags=Twin(ALL), cin=false faults=false ends=false;
    /// Bytes reversed.
    Bswap "bswap" dst=true args=1 imm=None flags=None, cin=false faults=false ends=false;
    /// dst = !a & b
    Andn "andn" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// dst = a & (a - 1)
    Blsr "blsr" dst=true args=1 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// dst = a & -a
    Blsi "blsi" dst=true args=1 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// dst = a ^ (a - 1)
    Blsmsk "blsmsk" dst=true args=1 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// Bit field of a by start and length in b.
    Bextr "bextr" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// a with the bits from b up cleared.
    Bzhi "bzhi" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=false ends=false;
    /// Bits of a deposited at the ones of b.
    Pdep "pdep" dst=true args=2 imm=None flags=None, cin=false faults=false ends=false;
    /// Bits of a gathered from the ones of b.
    Pext "pext" dst=true args=2 imm=None flags=None, cin=false faults=false ends=false;
    /// dst = a + b + CF, only CF written
    Adcx "adcx" dst=true args=2 imm=None flags=TwinMaybe, cin=true faults=false ends=false;
    /// dst = a + b + OF, only OF written
    Adox "adox" dst=true args=2 imm=None flags=TwinMaybe, cin=true faults=false ends=false;
    /// CRC-32C of a with b of the type in `imm`.
    Crc32 "crc32" dst=true args=2 imm=From flags=None, cin=false faults=false ends=false;
    /// dst = condition ? 1 : 0
    Setcc "set" dst=true args=0 imm=Cond flags=ByCond, cin=false faults=false ends=false;
    /// dst = condition ? a : b
    Select "select" dst=true args=2 imm=Cond flags=ByCond, cin=false faults=false ends=false;
    /// dst = status flags (with bit 1 set), in EFLAGS positions; as i64 the whole register as PUSHF stores it
    Getf "getf" dst=true args=0 imm=None flags=Reads(ALL), cin=false faults=false ends=false;
    /// status flags = a
    Setf "setf" dst=false args=1 imm=None flags=Sets(ALL), cin=false faults=false ends=false;
    /// dst = c + wrapped (a + (b << scale) + disp); c is a segment base
    Ea "ea" dst=true args=3 imm=Disp flags=None, cin=false faults=false ends=false;
    /// dst = memory at a
    Ld "ld" dst=true args=1 imm=None flags=None, cin=false faults=true ends=false;
    /// memory at a = b
    St "st" dst=false args=2 imm=None flags=None, cin=false faults=true ends=false;
    /// dst = old memory at a, memory += b
    RmwAdd "rmw.add" dst=true args=2 imm=None flags=Twin(ALL), cin=false faults=true ends=false;
    /// dst = old memory at a, memory -= b
    RmwSub "rmw.sub" dst=true args=2 imm=None flags=Twin(ALL), cin=false faults=true ends=false;
    /// dst = old memory at a, memory &= b
    RmwAnd "rmw.and" dst=true args=2 imm=None flags=Twin(ALL), cin=false faults=true ends=false;
    /// dst = old memory at a, memory |= b
    RmwOr "rmw.or" dst=true args=2 imm=None flags=Twin(ALL), cin=false faults=true ends=false;
    /// dst = old memory at a, memory ^= b
    RmwXor "rmw.xor" dst=true args=2 imm=None flags=Twin(ALL), cin=false faults=true ends=false;
    /// dst = old memory at a, memory += b + CF
    RmwAdc "rmw.adc" dst=true args=2 imm=None flags=Twin(ALL), cin=true faults=true ends=false;
    /// dst = old memory at a, memory -= b + CF
    RmwSbb "rmw.sbb" dst=true args=2 imm=None flags=Twin(ALL), cin=true faults=true ends=false;
    /// memory at a += 1
    RmwInc "rmw.inc" dst=true args=1 imm=None flags=Twin(PF | AF | ZF | SF | OF), cin=false faults=true ends=false;
    /// memory at a -= 1
    RmwDec "rmw.dec" dst=true args=1 imm=None flags=Twin(PF | AF | ZF | SF | OF), cin=false faults=true ends=false;
    /// memory at a = -memory
    RmwNeg "rmw.neg" dst=true args=1 imm=None flags=Twin(ALL), cin=false faults=true ends=false;
    /// memory at a = !memory
    RmwNot "rmw.not" dst=true args=1 imm=None flags=None, cin=false faults=true ends=false;
    /// dst = old memory at a, memory = b
    RmwXchg "rmw.xchg" dst=true args=2 imm=None flags=None, cin=false faults=true ends=false;
    /// bit b of memory at a set, CF = old; b within the width
    RmwBts "rmw.bts" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=true ends=false;
    /// bit b of memory at a cleared, CF = old; b within the width
    RmwBtr "rmw.btr" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=true ends=false;
    /// bit b of memory at a flipped, CF = old; b within the width
    RmwBtc "rmw.btc" dst=true args=2 imm=None flags=TwinMaybe, cin=false faults=true ends=false;
    /// dst = old memory at a; memory = c if old equals b; flags of b - old
    RmwCmpxchg "rmw.cmpxchg" dst=true args=3 imm=None flags=Twin(ALL), cin=false faults=true ends=false;
    /// rDX:rAX against memory at a, rCX:rBX in if equal; ty is the half's type
    RmwCmpxchg2 "rmw.cmpxchg2" dst=false args=1 imm=None flags=TwinMaybe, cin=false faults=true ends=false;
    /// dst = memory at a; the same bytes will be stored to, so probe for writing
    LdW "ldw" dst=true args=1 imm=None flags=None, cin=false faults=true ends=false;
    /// Fault unless [a, a + imm low byte) lies in the segment of imm's bits 8-11, bit 15: for writing. a is an offset.
    ChkSeg "chk.seg" dst=false args=1 imm=Num flags=None, cin=false faults=true ends=false;
    /// Stores before it are seen before loads behind it.
    Fence "fence" dst=false args=0 imm=None flags=None, cin=false faults=false ends=false;
    /// A routine of the engine; its row in the block's calls says which and with what.
    Helper "helper" dst=false args=3 imm=Call flags=Any, cin=false faults=true ends=false;
    /// An instruction kept as bytes; a is its address if it has memory.
    X86 "x86.op" dst=false args=3 imm=Opaque flags=Any, cin=false faults=true ends=false;
    /// To a if the condition holds, else to b.
    Br "br" dst=false args=2 imm=Cond flags=ByCond, cin=false faults=false ends=true;
    /// To a if c is not zero, else to b.
    Brnz "brnz" dst=false args=3 imm=None flags=None, cin=false faults=false ends=true;
    /// To the constant a.
    Jmp "jmp" dst=false args=1 imm=None flags=None, cin=false faults=false ends=true;
    /// To the computed a; checked before: see `chk.rip`.
    JmpInd "jmpind" dst=false args=1 imm=None flags=None, cin=false faults=false ends=true;
    /// Fault unless a may become RIP.
    ChkRip "chk.rip" dst=false args=1 imm=None flags=None, cin=false faults=true ends=false;
    /// To the constant a through the run loop.
    Exit "exit" dst=false args=1 imm=None flags=None, cin=false faults=false ends=true;
    /// Raise vector imm (low byte; bit 8: with error code 0) as a fault of this instruction.
    Raise "raise" dst=false args=0 imm=Num flags=None, cin=false faults=true ends=true;
}
}
pub use table::Opcode;

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Op {
    /// What it does.
    pub op: Opcode,
    /// Width.
    pub ty: Ty,
    /// Modifiers.
    pub attr: Attr,
    /// Index of the guest instruction it belongs to.
    pub insn: u8,
    /// Destination.
    pub dst: Ref,
    /// First operand.
    pub a: Ref,
    /// Second operand.
    pub b: Ref,
    /// Third operand.
    pub c: Ref,
    /// Immediate by [`Imm`].
    pub imm: u32,
}

const _: () = assert!(size_of::<Op>() == 16);

impl Op {
    /// An operation with everything else empty.
    pub fn new(op: Opcode, ty: Ty) -> Op {
        Op {
            op,
            ty,
            attr: Attr(0),
            insn: 0,
            dst: Ref::NONE,
            a: Ref::NONE,
            b: Ref::NONE,
            c: Ref::NONE,
            imm: 0,
        }
    }

    /// The condition in `imm`.
    pub fn cond(&self) -> Cond {
        Cond::ALL[(self.imm & 15) as usize]
    }

    /// The type in `imm`.
    pub fn from_ty(&self) -> Ty {
        Ty::ALL[(self.imm as usize).min(4)]
    }

    /// Flags this operation looks at.
    pub fn flags_read(&self) -> u32 {
        let info = self.op.info();
        let carry = if info.carry_in { flag::CF | flag::OF } else { 0 };
        carry
            | match info.flags {
                FlagsForm::None | FlagsForm::Sets(_) => 0,
                FlagsForm::Twin(m) if self.attr.flags() => flag::ALL & !m,
                FlagsForm::TwinMaybe if self.attr.flags() => flag::ALL,
                FlagsForm::Twin(_) | FlagsForm::TwinMaybe => 0,
                FlagsForm::ByCond => self.cond().reads(),
                FlagsForm::Reads(m) => m,
                FlagsForm::Any => flag::ALL,
            }
    }

    /// Flags this operation surely overwrites.
    pub fn flags_killed(&self) -> u32 {
        match self.op.info().flags {
            FlagsForm::Sets(m) => m,
            FlagsForm::Twin(m) if self.attr.flags() => m,
            _ => 0,
        }
    }
}

/// A helper call's constants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// Which helper, by its place in the helper table.
    pub id: u16,
    /// First register number, meaning by helper.
    pub reg: u8,
    /// Second register number, meaning by helper.
    pub reg2: u8,
    /// Operand size in bytes.
    pub size: u8,
    /// Address size in bytes.
    pub asize: u8,
    /// The operand is memory.
    pub mem: bool,
    /// REP state: 0 none, 1 REP/REPE, 2 REPNE.
    pub rep: u8,
    /// Immediate.
    pub imm: u64,
}

/// An instruction kept as bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Opaque {
    /// The original bytes.
    pub bytes: Vec<u8>,
}

/// Where a guest instruction of the block begins and how long it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Insn {
    /// Offset of the first byte from the block's start.
    pub off: u16,
    /// Length in bytes.
    pub len: u8,
}

/// A run of guest instructions, translated.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Block {
    /// Guest physical address of the first byte.
    pub pa: u64,
    /// Linear RIP (offset in CS, not the linear address) of the first byte.
    pub va: u64,
    /// Mode key.
    pub key: u32,
    /// The operations.
    pub ops: Vec<Op>,
    /// 64-bit constants.
    pub pool: Vec<u64>,
    /// Helper calls.
    pub calls: Vec<Call>,
    /// Opaque instructions.
    pub opaques: Vec<Opaque>,
    /// Guest instructions.
    pub insns: Vec<Insn>,
    /// Number of temporaries.
    pub temps: u16,
}

impl Block {
    /// Makes it empty, with what memory it has.
    pub fn clear(&mut self) {
        let Block { pa, va, key, ops, pool, calls, opaques, insns, temps } = self;
        (*pa, *va, *key, *temps) = (0, 0, 0, 0);
        ops.clear();
        pool.clear();
        calls.clear();
        opaques.clear();
        insns.clear();
    }

    /// A reference to a constant.
    pub fn constant(&mut self, v: u64) -> Ref {
        let at = match self.pool.iter().position(|&k| k == v) {
            Some(i) => i,
            None => {
                self.pool.push(v);
                self.pool.len() - 1
            }
        };
        Ref(Ref::POOL0 + at as u16)
    }

    /// The constant's value, if the reference is one.
    pub fn const_value(&self, r: Ref) -> Option<u64> {
        r.as_pool().and_then(|i| self.pool.get(i as usize).copied())
    }

    /// A fresh temporary.
    pub fn temp(&mut self) -> Ref {
        let r = Ref(Ref::TEMP0 + self.temps);
        self.temps += 1;
        r
    }

    /// Bytes of guest code covered.
    pub fn len(&self) -> u32 {
        self.insns.last().map_or(0, |i| u32::from(i.off) + u32::from(i.len))
    }

    /// Holds no instruction.
    pub fn is_empty(&self) -> bool {
        self.insns.is_empty()
    }
}
