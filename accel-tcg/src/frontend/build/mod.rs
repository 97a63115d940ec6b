//! One function per family of instructions; the table says which instruction is whose.

mod alu;
mod bits;
mod flow;
mod mov;
mod shift;
mod stack;
mod string;
mod system;
mod vector;

use super::Builder;
use crate::ir::{Cond, Help, Opcode};
use iced_x86::Mnemonic;

/// The condition that a conditional mnemonic tests.
fn cond(b: &Builder<'_>) -> Cond {
    use iced_x86::ConditionCode as C;
    match b.i.condition_code() {
        C::o => Cond::O,
        C::no => Cond::No,
        C::b => Cond::B,
        C::ae => Cond::Ae,
        C::e => Cond::Z,
        C::ne => Cond::Nz,
        C::be => Cond::Be,
        C::a => Cond::A,
        C::s => Cond::S,
        C::ns => Cond::Ns,
        C::p => Cond::P,
        C::np => Cond::Np,
        C::l => Cond::L,
        C::ge => Cond::Ge,
        C::le => Cond::Le,
        C::None | C::g => Cond::G,
    }
}

macro_rules! rows {
    ($b:ident, $m:ident: $($($name:ident)|+ => $f:path $([$($arg:expr),*])?;)*) => {
        match $m {
            $($(Mnemonic::$name)|+ => $f($b $($(, $arg)*)?),)*
            _ => vector::any($b),
        }
    };
}

/// Writes the current instruction's operations.
#[rustfmt::skip]
pub fn instruction(b: &mut Builder<'_>) {
    let m = b.i.mnemonic();
    rows! { b, m:
        Add => alu::binary [Opcode::Add, Opcode::RmwAdd];
        Or => alu::binary [Opcode::Or, Opcode::RmwOr];
        Adc => alu::binary [Opcode::Adc, Opcode::RmwAdc];
        Sbb => alu::binary [Opcode::Sbb, Opcode::RmwSbb];
        And => alu::binary [Opcode::And, Opcode::RmwAnd];
        Sub => alu::binary [Opcode::Sub, Opcode::RmwSub];
        Xor => alu::binary [Opcode::Xor, Opcode::RmwXor];
        Cmp => alu::compare [Opcode::Cmp];
        Test => alu::compare [Opcode::Test];
        Inc => alu::unary [Opcode::Inc, Opcode::RmwInc];
        Dec => alu::unary [Opcode::Dec, Opcode::RmwDec];
        Neg => alu::unary [Opcode::Neg, Opcode::RmwNeg];
        Not => alu::unary [Opcode::Not, Opcode::RmwNot];
        Mul => alu::mul [Opcode::Mul, Opcode::Umulh];
        Imul => alu::imul;
        Div => alu::div [Opcode::Div];
        Idiv => alu::div [Opcode::Idiv];
        Adcx => alu::carryless [Opcode::Adcx];
        Adox => alu::carryless [Opcode::Adox];
        Mulx => alu::mulx;
        Xadd => alu::xadd;
        Cmpxchg => alu::cmpxchg;
        Cmpxchg8b | Cmpxchg16b => alu::cmpxchg2;
        Daa => alu::bcd [0];
        Das => alu::bcd [1];
        Aaa => alu::bcd [2];
        Aas => alu::bcd [3];
        Aam => alu::bcd [4];
        Aad => alu::bcd [5];
        Cbw | Cwde | Cdqe => alu::extend_a;
        Cwd | Cdq | Cqo => alu::extend_d;

        Shl | Sal => shift::shift [Opcode::Shl];
        Shr => shift::shift [Opcode::Shr];
        Sar => shift::shift [Opcode::Sar];
        Rol => shift::shift [Opcode::Rol];
        Ror => shift::shift [Opcode::Ror];
        Rcl => shift::shift [Opcode::Rcl];
        Rcr => shift::shift [Opcode::Rcr];
        Shld => shift::double [Opcode::Shld];
        Shrd => shift::double [Opcode::Shrd];
        Shlx => shift::plain [Opcode::Shl];
        Shrx => shift::plain [Opcode::Shr];
        Sarx => shift::plain [Opcode::Sar];
        Rorx => shift::plain [Opcode::Ror];

        Bt => bits::test [Opcode::Bt, Opcode::Bt];
        Bts => bits::test [Opcode::Bts, Opcode::RmwBts];
        Btr => bits::test [Opcode::Btr, Opcode::RmwBtr];
        Btc => bits::test [Opcode::Btc, Opcode::RmwBtc];
        Bsf => bits::scan [Opcode::Bsf];
        Bsr => bits::scan [Opcode::Bsr];
        Lzcnt => bits::scan [Opcode::Lzcnt];
        Tzcnt => bits::scan [Opcode::Tzcnt];
        Popcnt => bits::scan [Opcode::Popcnt];
        Bswap => bits::bswap;
        Movbe => bits::movbe;
        Andn => bits::vex3 [Opcode::Andn, true];
        Bextr => bits::vex3 [Opcode::Bextr, true];
        Bzhi => bits::vex3 [Opcode::Bzhi, true];
        Pdep => bits::vex3 [Opcode::Pdep, false];
        Pext => bits::vex3 [Opcode::Pext, false];
        Blsr => bits::vex2 [Opcode::Blsr];
        Blsi => bits::vex2 [Opcode::Blsi];
        Blsmsk => bits::vex2 [Opcode::Blsmsk];
        Crc32 => bits::crc32;
        Lahf => bits::lahf;
        Sahf => bits::sahf;
        Clc => bits::carry [Opcode::And, !1];
        Stc => bits::carry [Opcode::Or, 1];
        Cmc => bits::carry [Opcode::Xor, 1];
        Salc => bits::salc;

        Mov => mov::mov;
        Movnti => mov::mov;
        Movzx => mov::extend [Opcode::Zext];
        Movsx | Movsxd => mov::extend [Opcode::Sext];
        Lea => mov::lea;
        Xchg => mov::xchg;
        Xlatb => mov::xlat;
        Lds | Les | Lfs | Lgs | Lss => mov::load_far;
        Cmova | Cmovae | Cmovb | Cmovbe | Cmove | Cmovg | Cmovge | Cmovl | Cmovle | Cmovne | Cmovno | Cmovnp | Cmovns
            | Cmovo | Cmovp | Cmovs => mov::cmov;
        Seta | Setae | Setb | Setbe | Sete | Setg | Setge | Setl | Setle | Setne | Setno | Setnp | Setns | Seto | Setp
            | Sets => mov::set;
        Reservednop => mov::reserved_nop;
        Nop | Endbr64 | Endbr32 | Prefetch | Prefetchw | Prefetchwt1 | Prefetchnta | Prefetcht0
            | Prefetcht1 | Prefetcht2 | Lfence | Sfence => mov::nop;
        Rdsspd | Rdsspq | Cldemote => mov::nop;
        Mfence => mov::fence;
        Pause => mov::pause;

        Push => stack::push;
        Pop => stack::pop;
        Pusha | Pushad => stack::whole [Help::Pusha];
        Popa | Popad => stack::whole [Help::Popa];
        Pushf | Pushfd | Pushfq => stack::whole [Help::Pushf];
        Popf | Popfd | Popfq => stack::popf;
        Enter => stack::enter;
        Leave => stack::leave;

        Jmp => flow::jmp;
        Call => flow::call;
        Ret => flow::ret;
        Retf => flow::retf;
        Ja | Jae | Jb | Jbe | Je | Jg | Jge | Jl | Jle | Jne | Jno | Jnp | Jns | Jo | Jp | Js => flow::jcc;
        Loop | Loope | Loopne => flow::loops;
        Jcxz | Jecxz | Jrcxz => flow::jcxz;
        Int => flow::int [Help::Int];
        Int3 => flow::int [Help::Int3];
        Int1 => flow::int [Help::Int1];
        Into => flow::int [Help::Into];
        Iret | Iretd | Iretq => flow::ending [Help::Iret];
        Syscall => flow::ending [Help::Syscall];
        Sysret | Sysretq => flow::ending [Help::Sysret];
        Sysenter => flow::ending [Help::Sysenter];
        Sysexit | Sysexitq => flow::ending [Help::Sysexit];
        Ud0 | Ud1 | Ud2 => flow::undefined;

        Movsb | Movsw | Movsq => string::string [string::MOVS];
        Stosb | Stosw | Stosd | Stosq => string::string [string::STOS];
        Lodsb | Lodsw | Lodsd | Lodsq => string::string [string::LODS];
        Scasb | Scasw | Scasd | Scasq => string::string [string::SCAS];
        Cmpsb | Cmpsw | Cmpsq => string::string [string::CMPS];
        Insb | Insw | Insd => string::string [string::INS];
        Outsb | Outsw | Outsd => string::string [string::OUTS];
        Movsd => string::movsd [string::MOVS];
        Cmpsd => string::movsd [string::CMPS];

        Cli => system::simple [Help::Cli, true];
        Sti => system::simple [Help::Sti, true];
        Cld => system::simple [Help::Cld, false];
        Std => system::simple [Help::Std, false];
        Hlt => system::simple [Help::Hlt, true];
        Clts => system::simple [Help::Clts, true];
        Wbinvd | Wbnoinvd => system::simple [Help::Wbinvd, false];
        Invd => system::simple [Help::Invd, false];
        Swapgs => system::simple [Help::Swapgs, false];
        Clac => system::simple [Help::Clac, true];
        Stac => system::simple [Help::Stac, true];
        Cpuid => system::simple [Help::Cpuid, true];
        Rdmsr => system::simple [Help::Rdmsr, false];
        Wrmsr => system::simple [Help::Wrmsr, true];
        Rdtsc => system::simple [Help::Rdtsc, false];
        Rdtscp => system::simple [Help::Rdtscp, false];
        Rdpmc => system::simple [Help::Rdpmc, false];
        Xgetbv => system::simple [Help::Xgetbv, false];
        Rdpkru => system::simple [Help::Rdpkru, false];
        Wrpkru => system::simple [Help::Wrpkru, true];
        Xsetbv => system::simple [Help::Xsetbv, true];
        Serialize => system::simple [Help::Serialize, true];
        Rdpid => system::to_register [Help::Rdpid];
        Rdrand => system::rdrand [0];
        Rdseed => system::rdrand [1];
        Rdfsbase => system::read_base [4];
        Rdgsbase => system::read_base [5];
        Wrfsbase => system::write_base [4];
        Wrgsbase => system::write_base [5];
        Lgdt => system::table [Help::Lgdt, false];
        Lidt => system::table [Help::Lidt, false];
        Sgdt => system::table [Help::Sgdt, true];
        Sidt => system::table [Help::Sidt, true];
        Lldt => system::selector [Help::Lldt];
        Ltr => system::selector [Help::Ltr];
        Verr => system::selector [Help::Verr];
        Verw => system::selector [Help::Verw];
        Lmsw => system::selector [Help::Lmsw];
        Sldt => system::store_selector [Help::Sldt];
        Str => system::store_selector [Help::StrTr];
        Smsw => system::store_selector [Help::Smsw];
        Lar => system::descriptor [Help::Lar];
        Lsl => system::descriptor [Help::Lsl];
        Arpl => system::arpl;
        Bound => system::bound;
        Invlpg => system::invlpg;
        Invpcid => system::invpcid;
        Clflush | Clflushopt | Clwb => system::clflush;
        In => system::input;
        Out => system::output;
        Fxsave | Fxsave64 => system::area [Help::Fxsave, 0, 512];
        Fxrstor | Fxrstor64 => system::area [Help::Fxrstor, 0, 512];
        Xsave | Xsave64 => system::area [Help::Xsave, 0, 0];
        Xsaveopt | Xsaveopt64 => system::area [Help::Xsave, 1, 0];
        Xsavec | Xsavec64 => system::area [Help::Xsave, 2, 0];
        Xsaves | Xsaves64 => system::area [Help::Xsave, 3, 0];
        Xrstor | Xrstor64 => system::area [Help::Xrstor, 0, 0];
        Xrstors | Xrstors64 => system::area [Help::Xrstor, 3, 0];
        Ldmxcsr | Vldmxcsr => system::mxcsr [Help::Ldmxcsr];
        Stmxcsr | Vstmxcsr => system::mxcsr [Help::Stmxcsr];

        Vmaskmovps | Vpmaskmovd => vector::masked [4];
        Vmaskmovpd | Vpmaskmovq => vector::masked [8];
        Vgatherdps | Vpgatherdd => vector::gather [4, 4];
        Vgatherdpd | Vpgatherdq => vector::gather [8, 4];
        Vgatherqps | Vpgatherqd => vector::gather [4, 8];
        Vgatherqpd | Vpgatherqq => vector::gather [8, 8];
        Maskmovdqu | Vmaskmovdqu | Maskmovq => vector::mask_bytes;
        Movups | Movaps | Movupd | Movapd | Movdqu | Movdqa | Lddqu => vector::mov128;
    }
}
