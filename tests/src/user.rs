//! The smallest operating system: user memory under page tables, and handlers that halt on every exception.
//!
//! Others' suites of user programs run in it. Selectors, control registers and the registers at the start are those
//! that Linux gives a fresh process, since their expectations were taken there.

use anura_accel::{AccelVm, Accelerator, Budget, Vcpu, VcpuExit};
use anura_accel_tcg::jit::JitEngine;
use anura_accel_tcg::testbed::TestBed;
use anura_accel_tcg::vcpu::{Interp, PortableInterp};
use anura_vmcore::CpuSignal;
use anura_x86::desc::Descriptor;
use anura_x86::regs::{cr0, cr4, efer, xcr0};
use anura_x86::segment::index::{CS, ES, FS, GS};
use anura_x86::{CpuState, Segment, TableReg, XsaveImage};
use std::collections::BTreeMap;
use std::sync::Arc;

const RAM: u64 = 16 << 20;
/// Where the supervisor's first 64 KiB appear.
const HIGH: u64 = 0xffff_9000_0000_0000;
const IDT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const TSS: u64 = 0x6000;
const STACK: u64 = 0x8000;
const HANDLERS: u64 = 0x9000;
const ROOT: u64 = 0x1_0000;
/// Frames of user memory; page tables lie below.
const FRAMES: u64 = 0x20_0000;
const USER_CODE: u16 = 0x33;
const USER_CODE32: u16 = 0x23;
const USER_DATA: u16 = 0x2b;
/// Exceptions that push an error code.
const WITH_CODE: [u8; 8] = [8, 10, 11, 12, 13, 14, 17, 21];

/// Memory of one program, and the processor that will run it.
pub struct User {
    bed: TestBed,
    vcpu: Box<dyn Vcpu>,
    /// Lives as long as its processor.
    _vm: Arc<dyn AccelVm>,
    pages: BTreeMap<u64, u64>,
    next_table: u64,
    next_frame: u64,
}

/// Where a program stopped: registers as they were before the exception, and its vector.
pub struct Stop {
    /// The registers.
    pub state: Box<CpuState>,
    /// The exception.
    pub vector: u8,
}

impl Stop {
    /// The signal that Linux makes of the exception.
    pub fn signal(&self) -> &'static str {
        match self.vector {
            0 | 16 | 19 => "SIGFPE",
            1 | 3 => "SIGTRAP",
            6 => "SIGILL",
            11 | 12 | 17 => "SIGBUS",
            _ => "SIGSEGV",
        }
    }
}

impl User {
    /// Empty memory behind a processor of the given model on an engine.
    pub fn new(model: &str, engine: &str) -> Result<Self, String> {
        let bed = TestBed::new(RAM, model);
        let mut next_table = ROOT + 0x1000;
        for page in 0..16 {
            bed.map_page(ROOT, &mut next_table, HIGH + page * 0x1000, page << 12 | 3);
        }
        for v in 0..32u64 {
            let at = HIGH + HANDLERS + v * 16;
            // INT3 and INTO are for everybody.
            let gate = Descriptor::gate(8, at as u32, if v == 3 || v == 4 { 0xee } else { 0x8e }, 0);
            bed.put(IDT + v * 16, gate.0);
            bed.put(IDT + v * 16 + 8, at >> 32);
            bed.put(HANDLERS + v * 16, 0xf4f4_f4f4_f4f4_f4f4);
        }
        bed.put(GDT + 8, Descriptor::segment(0, 0xfffff, 0xa09b).0);
        bed.put(GDT + u64::from(USER_CODE32 & !7), Descriptor::segment(0, 0xfffff, 0xc0fb).0);
        bed.put(GDT + u64::from(USER_DATA & !7), Descriptor::segment(0, 0xfffff, 0xc0f3).0);
        bed.put(GDT + u64::from(USER_CODE & !7), Descriptor::segment(0, 0xfffff, 0xa0fb).0);
        bed.put(TSS + 4, HIGH + STACK);
        let engine: &dyn Accelerator = match engine {
            "interp" => &Interp,
            "interp-portable" => &PortableInterp,
            "jit" => &JitEngine { exact: true, ..JitEngine::default() },
            other => return Err(format!("no engine {other} for programs")),
        };
        let vm = engine.create_vm(&bed.spaces, &bed.config).map_err(|e| format!("no machine: {e:?}"))?;
        let vcpu = vm.create_vcpu(0, CpuSignal::new()).map_err(|e| format!("no processor: {e:?}"))?;
        Ok(Self { bed, vcpu, _vm: vm, pages: BTreeMap::new(), next_table, next_frame: FRAMES })
    }

    /// Takes all user memory away, for the next program.
    pub fn clear(&mut self) {
        for (page, frame) in std::mem::take(&mut self.pages) {
            self.bed.map_page(ROOT, &mut self.next_table, page << 12, 0);
            self.bed.ram.write(frame, &[0; 0x1000]);
        }
        self.next_frame = FRAMES;
    }

    /// Makes `size` bytes from `at` on user memory and puts `bytes` at its start. Fails if the machine is too small.
    pub fn map(&mut self, at: u64, size: u64, bytes: &[u8], writable: bool) -> Result<(), String> {
        let last = at.checked_add(size.max(1) - 1).ok_or("memory wraps around")?;
        if size > RAM {
            return Err(format!("{size} bytes of memory are too many"));
        }
        for page in at >> 12..=last >> 12 {
            if self.pages.contains_key(&page) {
                continue;
            }
            if self.next_frame >= RAM || self.next_table + 0x4000 > FRAMES {
                return Err("the program is too large".into());
            }
            let pte = self.next_frame | if writable { 7 } else { 5 };
            self.bed.map_page(ROOT, &mut self.next_table, page << 12, pte);
            self.pages.insert(page, self.next_frame);
            self.next_frame += 0x1000;
        }
        let mut done = 0;
        while done < bytes.len() {
            let va = at + done as u64;
            let n = (0x1000 - (va & 0xfff) as usize).min(bytes.len() - done);
            self.bed.ram.write(self.frame(va)?, &bytes[done..done + n]);
            done += n;
        }
        Ok(())
    }

    fn frame(&self, va: u64) -> Result<u64, String> {
        let frame = self.pages.get(&(va >> 12)).ok_or(format!("{va:#x} is no memory"))?;
        Ok(frame + (va & 0xfff))
    }

    /// Reads user memory.
    pub fn read(&self, at: u64, into: &mut [u8]) -> Result<(), String> {
        let mut done = 0;
        while done < into.len() {
            let va = at + done as u64;
            let n = (0x1000 - (va & 0xfff) as usize).min(into.len() - done);
            self.bed.ram.read(self.frame(va)?, &mut into[done..done + n]);
            done += n;
        }
        Ok(())
    }

    /// Runs from `rip` to the first exception, for at most a million instructions.
    pub fn run(&mut self, bits: u32, rip: u64, rsp: u64) -> Result<Stop, String> {
        self.vcpu
            .set_state(&self.start(bits, rip, rsp))
            .map_err(|e| format!("the start is refused: {e:?}"))?;
        let exit = self.vcpu.run(Budget::Instructions(1_000_000));
        if exit != VcpuExit::Halted {
            return Err(format!("ended with {exit:?}"));
        }
        let mut state = Box::new(self.vcpu.state());
        let vector = (state.rip.wrapping_sub(HIGH + HANDLERS) / 16) as u8;
        let frame = state.gpr[4].wrapping_sub(HIGH) + if WITH_CODE.contains(&vector) { 8 } else { 0 };
        state.rip = self.bed.get(frame);
        state.rflags = self.bed.get(frame + 16);
        state.gpr[4] = self.bed.get(frame + 24);
        Ok(Stop { state, vector })
    }

    fn start(&self, bits: u32, rip: u64, rsp: u64) -> CpuState {
        let mut s = CpuState::reset(0);
        s.gpr = [0; 16];
        s.gpr[4] = rsp;
        s.rip = rip;
        s.rflags = 0x202;
        s.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::AM | cr0::NE | cr0::ET | cr0::MP;
        s.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE;
        s.cr3 = ROOT;
        s.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        s.xcr0 = xcr0::ALL;
        for i in 0..6 {
            s.seg[i] = Segment::new(USER_DATA, 0, u32::MAX, 0xc0f3);
        }
        s.seg[CS] = match bits {
            32 => Segment::new(USER_CODE32, 0, u32::MAX, 0xc0fb),
            _ => Segment::new(USER_CODE, 0, u32::MAX, 0xa0fb),
        };
        for i in if bits == 32 { &[FS, GS][..] } else { &[ES, 3, FS, GS] } {
            s.seg[*i] = Segment::null(0);
        }
        s.ldtr = Segment::null(0);
        s.tr = Segment::new(0x40, HIGH + TSS, 0x67, 0x8b);
        s.gdtr = TableReg { base: HIGH + GDT, limit: 0x7f };
        s.idtr = TableReg { base: HIGH + IDT, limit: 0x1ff };
        s.xsave = XsaveImage::init();
        s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_to_its_exception() {
        let mut user = User::new("max", "interp").unwrap();
        for _ in 0..2 {
            user.clear();
            program(&mut user);
        }
    }

    fn program(user: &mut User) {
        // mov eax, 5; mov [0x20ffe], eax; hlt
        user.map(0x1_0000, 16, b"\xb8\x05\x00\x00\x00\xa3\xfe\x0f\x02\x00\xf4", false).unwrap();
        user.map(0x2_0000, 0x2000, &[], true).unwrap();
        let stop = user.run(32, 0x1_0000, 0x2_1000).unwrap();
        assert_eq!((stop.vector, stop.signal(), stop.state.rip), (13, "SIGSEGV", 0x1_000a));
        assert_eq!((stop.state.gpr[0], stop.state.gpr[4]), (5, 0x2_1000));
        let mut word = [0; 4];
        user.read(0x2_0ffe, &mut word).unwrap();
        assert_eq!(word, [5, 0, 0, 0]);
    }
}
