//! State of one virtual processor as the engine keeps it, and its way to and from [`CpuState`].
//!
//! [`Env`] differs from the architectural state in three ways: the status flags are lazy
//! (`cc_op`, `cc_a`, `cc_b`, owned by `interp::flags`), the mode is summed up in `mode_key`
//! (owned by [`crate::mode`]), and instruction counts are kept.
use crate::interp::flags;
use crate::mmu::Mmu;
use anura_accel::{CpuPlatform, VmConfig, VmSpaces};
use anura_memory::CodeListener;
use anura_vmcore::{CpuSignal, Requester};
use anura_x86::regs::{cr4, efer, rflags, vector};
use anura_x86::state::{EventKind, PendingException, is_canonical, is_canonical_57};
use anura_x86::{Activity, CpuState, Feature, Msrs, Segment, Shadow, TableReg, XsaveImage};
use std::sync::Arc;

/// x87, SSE and AVX registers in the XSAVE standard layout.
pub type FpuArea = XsaveImage;

/// Everything a running processor needs at hand.
#[repr(C, align(64))]
pub struct Env {
    /// General registers in encoding order.
    pub gpr: [u64; 16],
    /// Instruction pointer; exact at instruction boundaries and whenever a helper runs.
    pub rip: u64,
    /// What produced the flags last (see `interp::flags`).
    pub cc_op: u32,
    /// Sum of the mode bits that code depends on (see [`crate::mode`]).
    pub mode_key: u32,
    /// First lazy flag operand.
    pub cc_a: u64,
    /// Second lazy flag operand.
    pub cc_b: u64,
    /// Flags that replace those of the record, a byte each (see `interp::flags::over`).
    pub cc_c: u64,
    /// All flags but the six status flags, without the constant one.
    pub eflags_sys: u64,
    /// Instructions retired up to the start of the current block.
    pub icount: u64,
    /// Instructions of the current block up to and with the running one; the interpreter sets
    /// it before whatever may reach a device, the local APIC or the clock.
    pub insn_in_block: u64,
    /// Always zero: what an absent base, index or segment reads.
    pub zero: u64,
    /// Temporaries of the running instruction (owned by `interp`).
    pub temps: [u64; 64],
    /// ES CS SS DS FS GS.
    pub seg: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: TableReg,
    /// Interrupt descriptor table.
    pub idtr: TableReg,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// EFER.
    pub efer: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// PAE page-directory pointers.
    pub pdpte: [u64; 4],
    /// Event begun but not delivered.
    pub pending: Option<PendingException>,
    /// DR6 bits of #DB traps that the next boundary delivers (later, under a MOV SS shadow).
    pub pending_db: u64,
    /// An NMI is latched.
    pub nmi_pending: bool,
    /// NMIs wait for IRET.
    pub nmi_masked: bool,
    /// In HLT.
    pub halted: bool,
    /// Waiting for a start-up IPI.
    pub wait_sipi: bool,
    /// After a triple fault.
    pub shutdown: bool,
    /// Interrupt shadow of the next instruction.
    pub shadow: Shadow,
    /// Guest TSC minus the machine's TSC.
    pub tsc_offset: u64,
    /// The other MSRs.
    pub msrs: Msrs,
    /// What translated code keeps beside the processor's state.
    pub jit: JitEnv,
    /// x87, SSE, AVX.
    pub fpu: FpuArea,
}

/// What translated code and the routines around it exchange.
#[repr(C, align(64))]
#[derive(Clone, Debug, Default)]
pub struct JitEnv {
    /// The host's stack pointer at the entry.
    pub host_rsp: u64,
    /// Address of the current data view of the TLB, and its mask.
    pub tlb: u64,
    /// See [`crate::mmu::tlb::Table`].
    pub tlb_mask: u64,
    /// Address of the word that others set to get attention.
    pub poll: u64,
    /// Instructions left, where they are counted.
    pub budget: i64,
    /// Why translated code was left, with an argument in the upper half.
    pub exit: u64,
    /// Return address of the site where it was left.
    pub site: u64,
    /// What entries of the jump cache must have: lower and upper half of the address space.
    pub tag: [u64; 2],
    /// What links to other pages must have: lower and upper half.
    pub epoch: [u64; 2],
    /// Operands of a helper.
    pub args: [u64; 3],
    /// Jumps backward until the run loop is to look at one.
    pub hot: u32,
    /// Guest registers whose host registers others have in the running code.
    pub lent: [u64; 8],
    /// Pages that the accesses of a loop go through: from which address on, how many addresses are good (none: closed),
    /// and where the first is on the host. See `jit::emit::windows`.
    pub windows: [[u64; 3]; WINDOWS],
    /// Number of the loop that they belong to, or 0.
    pub window_owner: u64,
    /// The table that they were copied from.
    pub window_view: u64,
    /// Registers that are in the host's: bit 0 XMM, bit 1 YMM, bit 2 x87.
    pub live: u32,
    /// Not zero: there are translations that other processors may not know of, so that serialising instructions come to
    /// the run loop.
    pub unsure: u32,
    /// The host's own MXCSR.
    pub mxcsr_host: u32,
    /// Nanoseconds of a tick of the host's counter times 2^32, or 0 where RDTSC asks the clock.
    pub tsc_mult: u64,
    /// What the guest's counter is ahead of the host's, in nanoseconds, without the clock's bias.
    pub tsc_add: u64,
    /// Address of the clock's bias.
    pub tsc_bias: u64,
    /// Answers of CPUID, by a hash of what was asked.
    pub cpuid: [Answer; CPUID_ANSWERS],
    /// Bytes of an access that no single host address has.
    pub bounce: [u64; 8],
    /// What the numbers of slots are added to.
    pub slots: u64,
    /// How many times PAUSE does not yield.
    pub pauses: u32,
}

/// Windows of the loop that runs; see [`JitEnv::windows`].
pub const WINDOWS: usize = 8;

/// How many answers of CPUID are kept.
pub const CPUID_ANSWERS: usize = 16;

/// What CPUID has answered.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Answer {
    /// EAX, and ECX in the upper half.
    pub asked: u64,
    /// EAX EBX ECX EDX.
    pub given: [u32; 4],
    _pad: u64,
}

impl JitEnv {
    /// Where the answer to a question is kept; translated code knows this function too.
    fn answer(&mut self, eax: u32, ecx: u32) -> &mut Answer {
        &mut self.cpuid[(eax ^ eax >> 28 ^ ecx) as usize & (CPUID_ANSWERS - 1)]
    }

    /// Keeps an answer.
    pub fn keep_answer(&mut self, eax: u32, ecx: u32, given: [u32; 4]) {
        *self.answer(eax, ecx) = Answer { asked: u64::from(ecx) << 32 | u64::from(eax), given, _pad: 0 };
    }

    /// Forgets all answers: to be called when what they depend on has changed.
    pub fn forget_answers(&mut self) {
        for (n, a) in self.cpuid.iter_mut().enumerate() {
            // A question whose answer is kept elsewhere.
            a.asked = n as u64 ^ 1;
        }
    }
}

/// Why an instruction or a delivery did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Exception vector.
    pub vector: u8,
    /// Error code, if the exception pushes one.
    pub error: Option<u32>,
    /// Faulting address (#PF) or DR6 bits (#DB).
    pub cr2: u64,
    /// Fault or trap.
    pub kind: EventKind,
}

/// Result of what may fault.
pub type Exec<T> = Result<T, Fault>;

impl Fault {
    /// A fault without an error code.
    pub const fn new(vector: u8) -> Self {
        Self { vector, error: None, cr2: 0, kind: EventKind::Fault }
    }
    /// A fault with an error code.
    pub const fn with_error(vector: u8, error: u32) -> Self {
        Self { vector, error: Some(error), cr2: 0, kind: EventKind::Fault }
    }
    /// No fault: the processor stands at this instruction until an interrupt comes (an x87 error with CR0.NE clear).
    pub const FROZEN: Self = Self { vector: 0xff, error: None, cr2: 0, kind: EventKind::External };
    /// #UD.
    pub const UD: Self = Self::new(vector::UD);
    /// #NM.
    pub const NM: Self = Self::new(vector::NM);
    /// #DE.
    pub const DE: Self = Self::new(vector::DE);
    /// #GP(0).
    pub const GP0: Self = Self::with_error(vector::GP, 0);
    /// #GP(0) for an address of data that is not canonical; kept apart since it is #SS(0) if the segment is SS.
    pub const fn not_canonical(va: u64) -> Self {
        Self { cr2: va, ..Self::GP0 }
    }
    /// #SS(0).
    pub const SS0: Self = Self::with_error(vector::SS, 0);
    /// #GP with a selector error code.
    pub const fn gp(error: u32) -> Self {
        Self::with_error(vector::GP, error)
    }
    /// #PF.
    pub const fn page(cr2: u64, error: u32) -> Self {
        Self { vector: vector::PF, error: Some(error), cr2, kind: EventKind::Fault }
    }
    /// #DB as a trap (data breakpoint, single step), `dr6` its condition bits.
    pub const fn debug_trap(dr6: u64) -> Self {
        Self { vector: vector::DB, error: None, cr2: dr6, kind: EventKind::Trap }
    }
    /// #DB as a fault (code breakpoint, general detect).
    pub const fn debug_fault(dr6: u64) -> Self {
        Self { vector: vector::DB, error: None, cr2: dr6, kind: EventKind::Fault }
    }
}

/// What all virtual processors of a machine share.
pub struct VmShared {
    /// Address spaces, clock and RAM.
    pub spaces: VmSpaces,
    /// Model, topology, rates and the board.
    pub config: VmConfig,
    /// Translated code.
    pub code: Arc<crate::cache::Shared>,
    /// Pages that any processor of the machine has translations from.
    pub pages: Arc<crate::cache::CodePages>,
}

impl VmShared {
    /// For a machine; writers of its RAM will report changes of code here.
    pub fn new(spaces: &VmSpaces, config: &VmConfig) -> Arc<Self> {
        Self::with_pages(spaces, config, Arc::default())
    }

    /// The same where several processors have translations of their own, each with what this makes.
    pub fn with_pages(
        spaces: &VmSpaces,
        config: &VmConfig,
        pages: Arc<crate::cache::CodePages>,
    ) -> Arc<Self> {
        let code = Arc::new(crate::cache::Shared::default());
        pages.add_processor(&code);
        let listener: Arc<dyn CodeListener> = code.clone();
        for ram in &spaces.ram {
            ram.tracker().add_listener(Arc::downgrade(&listener));
        }
        Arc::new(Self { spaces: spaces.clone(), config: config.clone(), code, pages })
    }
}

/// One virtual processor.
// The layout matters: translated code takes the address of the state for that of the processor.
#[repr(C)]
pub struct Cpu {
    /// Registers.
    pub env: Env,
    /// Address translation and access to memory and ports.
    pub mmu: Mmu,
    /// The machine.
    pub vm: Arc<VmShared>,
    /// Index of this processor.
    pub id: u32,
    /// How others get its attention.
    pub signal: Arc<CpuSignal>,
    /// In counted time: the clock's instruction count minus this processor's own, at the start of
    /// `run` (the other processors' instructions).
    pub count_base: u64,
    /// The interpreter's own.
    pub t0: crate::interp::State,
    /// What routines called by translated code leave to the run loop.
    pub jit: crate::jit::Shared,
    /// The FERR# pin was raised and not lowered since.
    pub(crate) ferr: bool,
}

impl Cpu {
    /// A processor after power-up.
    pub fn new(vm: Arc<VmShared>, id: u32, signal: Arc<CpuSignal>) -> Self {
        let state = CpuState::reset(vm.config.model.signature());
        let mmu = Mmu::new(&vm.spaces);
        let mut cpu = Self {
            env: Env::new(&state),
            mmu,
            vm,
            id,
            signal,
            count_base: 0,
            t0: crate::interp::State::default(),
            jit: crate::jit::Shared::default(),
            ferr: false,
        };
        cpu.after_load();
        cpu
    }

    /// Takes over a state that was validated, and forgets all translations.
    pub fn load_state(&mut self, s: &CpuState) {
        self.env.load(s);
        self.vm.config.platform.apic(self.id).set_tpr(s.cr8 as u8);
        self.after_load();
    }

    /// The complete state.
    pub fn save_state(&self) -> CpuState {
        self.env.to_state(self.apic().tpr().into())
    }

    /// To be called when registers were set from outside: recomputes what depends on them.
    pub fn after_load(&mut self) {
        self.env.jit.forget_answers();
        self.ferr = self.env.fpu.fsw() & 0x80 != 0;
        self.paging_changed();
        self.mode_changed();
    }

    /// The board.
    pub fn platform(&self) -> &dyn CpuPlatform {
        &*self.vm.config.platform
    }

    /// The local APIC.
    pub fn apic(&self) -> &dyn anura_accel::LocalApic {
        self.vm.config.platform.apic(self.id)
    }

    /// This processor as the source of an access.
    pub fn requester(&self) -> Requester {
        Requester::Cpu(self.id)
    }

    /// Instructions retired so far, the running one included.
    pub fn exact_count(&self) -> u64 {
        self.env.icount.wrapping_add(self.env.insn_in_block)
    }

    /// In counted time, brings the clock to the running instruction. Call before an access that
    /// can reach a device, the local APIC or the clock.
    #[inline]
    pub fn sync_clock(&self) {
        if self.vm.config.counted {
            self.vm.spaces.clock.set_instructions(self.count_base.wrapping_add(self.exact_count()));
        }
    }

    /// Whether a base register may hold an address: with 57 bits where the processor has them at all.
    pub fn canonical_base(&self, va: u64) -> bool {
        if self.vm.config.model.has(Feature::La57) { is_canonical_57(va) } else { is_canonical(va) }
    }

    /// The same as [`Self::mode_changed`] after a change of CS, SS and RFLAGS alone.
    #[inline]
    pub fn segments_changed(&mut self) {
        self.env.segments_changed();
        self.view_changed();
    }

    /// Recomputes the mode key and the view of memory that goes with it.
    pub fn mode_changed(&mut self) {
        self.env.update_mode_key();
        self.view_changed();
    }
}

impl Env {
    /// A processor with the given state; `set_state` must have validated it.
    pub fn new(s: &CpuState) -> Self {
        let mut env = Self {
            gpr: [0; 16],
            rip: 0,
            cc_op: 0,
            mode_key: 0,
            cc_a: 0,
            cc_b: 0,
            cc_c: 0,
            eflags_sys: 0,
            icount: 0,
            insn_in_block: 0,
            zero: 0,
            temps: [0; 64],
            seg: s.seg,
            ldtr: s.ldtr,
            tr: s.tr,
            gdtr: s.gdtr,
            idtr: s.idtr,
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            xcr0: 0,
            efer: 0,
            dr: [0; 4],
            dr6: 0,
            dr7: 0,
            pdpte: [0; 4],
            pending: None,
            pending_db: 0,
            nmi_pending: false,
            nmi_masked: false,
            halted: false,
            wait_sipi: false,
            shutdown: false,
            shadow: Shadow::None,
            tsc_offset: 0,
            msrs: s.msrs.clone(),
            jit: JitEnv::default(),
            fpu: s.xsave.clone(),
        };
        env.load(s);
        env
    }

    /// Takes over an architectural state. Counts stay; the caller flushes
    /// the TLB. CR8 belongs to the local APIC and is not taken here.
    pub fn load(&mut self, s: &CpuState) {
        let CpuState {
            gpr,
            rip,
            rflags,
            seg,
            ldtr,
            tr,
            gdtr,
            idtr,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8: _,
            xcr0,
            dr,
            dr6,
            dr7,
            efer,
            msrs,
            pdpte,
            xsave,
            pending,
            pending_db,
            nmi_pending,
            nmi_masked,
            shadow,
            activity,
            tsc_offset,
        } = s;
        (self.gpr, self.rip) = (*gpr, *rip);
        (self.seg, self.ldtr, self.tr) = (*seg, *ldtr, *tr);
        (self.gdtr, self.idtr) = (*gdtr, *idtr);
        (self.cr0, self.cr2, self.cr3, self.cr4) = (*cr0, *cr2, *cr3, *cr4);
        (self.xcr0, self.efer) = (*xcr0, *efer);
        (self.dr, self.dr6, self.dr7) = (*dr, *dr6, *dr7);
        self.msrs.clone_from(msrs);
        self.pdpte = *pdpte;
        self.fpu.clone_from(xsave);
        // An image from outside must not make the host's x87 trap in our hands.
        self.fpu.settle_x87();
        (self.pending, self.pending_db) = (*pending, *pending_db);
        (self.nmi_pending, self.nmi_masked) = (*nmi_pending, *nmi_masked);
        self.shadow = *shadow;
        self.halted = *activity == Activity::Halted;
        self.wait_sipi = *activity == Activity::WaitForSipi;
        self.shutdown = *activity == Activity::Shutdown;
        self.tsc_offset = *tsc_offset;
        self.set_rflags(*rflags);
        self.update_mode_key();
    }

    /// The architectural state; `cr8` comes from the local APIC.
    pub fn to_state(&self, cr8: u64) -> CpuState {
        let mut xsave = self.fpu.clone();
        // MXCSR_MASK, which the host's FXSAVE leaves here, is no register.
        xsave.bytes[28..32].fill(0);
        CpuState {
            gpr: self.gpr,
            rip: self.rip,
            rflags: self.rflags(),
            seg: self.seg,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8,
            xcr0: self.xcr0,
            dr: self.dr,
            dr6: self.dr6,
            dr7: self.dr7,
            efer: self.efer,
            msrs: self.msrs.clone(),
            pdpte: self.pdpte,
            xsave,
            pending: self.pending,
            pending_db: self.pending_db,
            nmi_pending: self.nmi_pending,
            nmi_masked: self.nmi_masked,
            shadow: self.shadow,
            activity: if self.shutdown {
                Activity::Shutdown
            } else if self.wait_sipi {
                Activity::WaitForSipi
            } else if self.halted {
                Activity::Halted
            } else {
                Activity::Running
            },
            tsc_offset: self.tsc_offset,
        }
    }

    /// The whole flag register.
    pub fn rflags(&self) -> u64 {
        self.eflags_sys | flags::get(self) | rflags::ONE
    }

    /// Sets every flag; the caller has applied privilege rules. The mode key is not updated.
    pub fn set_rflags(&mut self, value: u64) {
        self.eflags_sys = value & rflags::SYSTEM;
        flags::set(self, value & rflags::STATUS);
    }

    /// Current privilege level, from the mode key.
    #[inline(always)]
    pub fn cpl(&self) -> u8 {
        (self.mode_key >> crate::mode::key::CPL_SHIFT & 3) as u8
    }
    /// 64-bit code is running.
    #[inline(always)]
    pub fn is_64bit(&self) -> bool {
        self.mode_key & crate::mode::key::L64 != 0
    }
    /// Long mode is active (64-bit or compatibility).
    #[inline(always)]
    pub fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }
    /// Whether a linear address is canonical by the current paging.
    #[inline]
    pub fn canonical(&self, va: u64) -> bool {
        if self.cr4 & cr4::LA57 != 0 { is_canonical_57(va) } else { is_canonical(va) }
    }

    /// Linear address of the next instruction.
    #[inline(always)]
    pub fn linear_rip(&self) -> u64 {
        if self.is_64bit() {
            self.rip
        } else {
            u64::from((self.seg[anura_x86::segment::index::CS].base as u32).wrapping_add(self.rip as u32))
        }
    }
}
