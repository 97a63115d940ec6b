//! Names of the engine's routines that the `helper` operation calls.

macro_rules! helps {
    ($($(#[$doc:meta])* $id:ident $name:literal;)*) => {
        /// A routine of the engine.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u16)]
        pub enum Help { $($(#[$doc])* $id),* }

        impl Help {
            /// Every routine.
            pub const ALL: &'static [Help] = &[$(Help::$id),*];

            /// Name in the text form.
            pub fn name(self) -> &'static str {
                match self { $(Help::$id => $name),* }
            }
        }
    };
}

helps! {
    /// String instruction; kind in `imm`.
    Str "str";
    /// ENTER; size and level in `imm`.
    Enter "enter";
    /// PUSHA.
    Pusha "pusha";
    /// POPA.
    Popa "popa";
    /// PUSHF.
    Pushf "pushf";
    /// POPF.
    Popf "popf";
    /// CLI.
    Cli "cli";
    /// STI.
    Sti "sti";
    /// CLD.
    Cld "cld";
    /// STD.
    Std "std";
    /// BOUND.
    Bound "bound";
    /// DAA, DAS, AAA, AAS, AAM, AAD: kind in `reg`.
    Bcd "bcd";
    /// ARPL.
    Arpl "arpl";
    /// INT n.
    Int "int";
    /// INT3.
    Int3 "int3";
    /// INT1.
    Int1 "int1";
    /// INTO.
    Into "into";
    /// RDPKRU.
    Rdpkru "rdpkru";
    /// WRPKRU.
    Wrpkru "wrpkru";
    /// IRET.
    Iret "iret";
    /// Far jump: offset a, selector b.
    JmpFar "jmp.far";
    /// Far call.
    CallFar "call.far";
    /// Far return.
    RetFar "ret.far";
    /// SYSCALL.
    Syscall "syscall";
    /// SYSRET.
    Sysret "sysret";
    /// SYSENTER.
    Sysenter "sysenter";
    /// SYSEXIT.
    Sysexit "sysexit";
    /// Load a segment register: selector a, segment `reg`.
    MovToSreg "mov.sreg";
    /// POP of a segment register.
    PopSreg "pop.sreg";
    /// LDS, LES, LFS, LGS, LSS.
    LoadFar "load.far";
    /// MOV to CRn.
    MovToCr "mov.cr";
    /// MOV from CRn.
    MovFromCr "mov.from.cr";
    /// MOV to DRn.
    MovToDr "mov.dr";
    /// MOV from DRn.
    MovFromDr "mov.from.dr";
    /// CLTS.
    Clts "clts";
    /// LMSW.
    Lmsw "lmsw";
    /// SMSW.
    Smsw "smsw";
    /// LGDT.
    Lgdt "lgdt";
    /// LIDT.
    Lidt "lidt";
    /// SGDT.
    Sgdt "sgdt";
    /// SIDT.
    Sidt "sidt";
    /// LLDT.
    Lldt "lldt";
    /// LTR.
    Ltr "ltr";
    /// SLDT.
    Sldt "sldt";
    /// STR.
    StrTr "str.tr";
    /// LAR.
    Lar "lar";
    /// LSL.
    Lsl "lsl";
    /// VERR.
    Verr "verr";
    /// VERW.
    Verw "verw";
    /// INVLPG.
    Invlpg "invlpg";
    /// INVPCID.
    Invpcid "invpcid";
    /// WBINVD, WBNOINVD.
    Wbinvd "wbinvd";
    /// INVD.
    Invd "invd";
    /// CLFLUSH and its relatives.
    Clflush "clflush";
    /// SWAPGS.
    Swapgs "swapgs";
    /// RDFSBASE, RDGSBASE.
    RdSegBase "rd.seg.base";
    /// WRFSBASE, WRGSBASE.
    WrSegBase "wr.seg.base";
    /// CLAC.
    Clac "clac";
    /// STAC.
    Stac "stac";
    /// CPUID.
    Cpuid "cpuid";
    /// RDMSR.
    Rdmsr "rdmsr";
    /// WRMSR.
    Wrmsr "wrmsr";
    /// RDTSC.
    Rdtsc "rdtsc";
    /// RDTSCP.
    Rdtscp "rdtscp";
    /// RDPMC.
    Rdpmc "rdpmc";
    /// RDPID.
    Rdpid "rdpid";
    /// RDRAND, RDSEED.
    Rdrand "rdrand";
    /// XGETBV.
    Xgetbv "xgetbv";
    /// The check for an x87 exception of before.
    X87Wait "x87wait";
    /// XSETBV.
    Xsetbv "xsetbv";
    /// IN.
    In "in";
    /// OUT.
    Out "out";
    /// HLT.
    Hlt "hlt";
    /// PAUSE.
    Pause "pause";
    /// MONITOR, MWAIT.
    Mwait "mwait";
    /// SERIALIZE.
    Serialize "serialize";
    /// FXSAVE.
    Fxsave "fxsave";
    /// FXRSTOR.
    Fxrstor "fxrstor";
    /// XSAVE, XSAVEOPT, XSAVEC, XSAVES.
    Xsave "xsave";
    /// XRSTOR, XRSTORS.
    Xrstor "xrstor";
    /// LDMXCSR.
    Ldmxcsr "ldmxcsr";
    /// STMXCSR.
    Stmxcsr "stmxcsr";
    /// MASKMOVQ, MASKMOVDQU, VMASKMOV and gathers: memory by element.
    VecMem "vec.mem";
}
