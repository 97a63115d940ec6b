//! Saving and restoring x87, SSE and AVX state, MXCSR and XCR0.
//!
//! The registers lie in [`crate::env::Env::fpu`] in XSAVE standard format. XINUSE is "differs
//! from the initial configuration", never the host's, so that images are the same on any host.
use super::{Flow, HelperArgs};
use crate::env::{Cpu, Env, Exec, Fault};
use crate::mmu::View;
use anura_x86::regs::{cr0, cr4, mxcsr, vector, xcr0};
use anura_x86::state::{XSAVE_HEADER, XSAVE_YMMH};
use anura_x86::{Feature, XsaveImage};

const X87_BYTES: std::ops::Range<usize> = 32..160;
const YMM_BYTES: usize = 256;
const MXCSR_AT: usize = 24;
/// Offset of PKRU in the standard form.
const PKRU_AT: u64 = 2688;

/// Offset of PKRU in an image, compacted with these components or standard.
fn pkru_at(compact: bool, components: u64) -> u64 {
    match (compact, components & xcr0::AVX != 0) {
        (false, _) => PKRU_AT,
        (true, true) => (XSAVE_YMMH + YMM_BYTES) as u64,
        (true, false) => XSAVE_YMMH as u64,
    }
}

/// XCOMP_BV says that the image is compacted.
const COMPACT: u64 = 1 << 63;

/// XMM registers that the current mode can name.
fn xmm_bytes(env: &Env) -> std::ops::Range<usize> {
    if env.is_64bit() { 160..416 } else { 160..288 }
}

/// The x87 part of a legacy area, with the instruction and data pointers in the form asked for.
fn legacy_image(env: &Env, wide: bool) -> [u8; 160] {
    let mut image = [0; 160];
    image.copy_from_slice(&env.fpu.bytes[..160]);
    if !wide {
        // 32-bit offsets; the selectors are zero, as CPUID.7:EBX[13] says.
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    image[28..32].copy_from_slice(&mxcsr::ALL.to_le_bytes());
    image
}

/// FXSAVE to `a`; `size` 8 is the 64-bit form.
pub fn fxsave(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_fpu(cpu)?;
    need_aligned(cpu, a.a, 16)?;
    cpu.probe_write(a.a, 512, View::Data)?;
    let image = legacy_image(&cpu.env, a.size == 8);
    cpu.store(a.a, &image, View::Data)?;
    let xmm = xmm_bytes(&cpu.env);
    let at = a.a.wrapping_add(xmm.start as u64);
    let bytes = cpu.env.fpu.bytes;
    cpu.store(at, &bytes[xmm], View::Data)?;
    Ok(Flow::Next)
}

/// FXRSTOR from `a`.
pub fn fxrstor(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_fpu(cpu)?;
    need_aligned(cpu, a.a, 16)?;
    let mut image = [0; 512];
    cpu.load(a.a, &mut image, View::Data)?;
    check_mxcsr(&image)?;
    restore_x87(&mut cpu.env.fpu, &image, a.size == 8);
    let xmm = xmm_bytes(&cpu.env);
    cpu.env.fpu.bytes[xmm.clone()].copy_from_slice(&image[xmm]);
    cpu.env.fpu.bytes[24..28].copy_from_slice(&image[24..28]);
    cpu.x87_controlled();
    cpu.mode_changed();
    Ok(Flow::EndBlock)
}

impl Cpu {
    /// An unmasked x87 error of before waits at an instruction that looks: #MF, or with CR0.NE clear the FERR# pin,
    /// and the processor stands still until an interrupt comes, unless IGNNE# lets it go on (vol. 1, 8.7).
    pub(crate) fn x87_error(&mut self) -> Exec<()> {
        if self.env.cr0 & cr0::NE != 0 {
            return Err(Fault::new(vector::MF));
        }
        self.sync_clock();
        self.ferr = true;
        if self.platform().ferr(true) { Ok(()) } else { Err(Fault::FROZEN) }
    }

    /// After an instruction that may have changed the x87's control and status: FERR# follows FSW.ES. The pin is never
    /// high while all exceptions are masked, which translated code relies on.
    pub(crate) fn x87_controlled(&mut self) {
        self.env.update_mode_key();
        if self.ferr && self.env.fpu.fsw() & 0x80 == 0 {
            self.ferr = false;
            self.platform().ferr(false);
        }
    }
}

/// The error of before, at an instruction whose operand lies in a segment that has to be looked at only then.
pub fn x87_wait(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    let (fcw, fsw) = (cpu.env.fpu.fcw(), cpu.env.fpu.fsw());
    if fsw & 0x80 != 0 || fsw & !fcw & 0x3f != 0 {
        cpu.x87_error()?;
    }
    Ok(Flow::Next)
}

fn need_fpu(cpu: &Cpu) -> Exec<()> {
    if cpu.env.cr0 & (cr0::EM | cr0::TS) != 0 { Err(Fault::NM) } else { Ok(()) }
}

/// #GP(0) unless aligned; an address that is not canonical comes first, since it may be #SS.
fn need_aligned(cpu: &Cpu, address: u64, to: u64) -> Exec<()> {
    if cpu.env.long_mode() && !cpu.env.canonical(address) {
        Err(Fault::not_canonical(address))
    } else if address & (to - 1) != 0 {
        Err(Fault::GP0)
    } else {
        Ok(())
    }
}

fn check_mxcsr(image: &[u8; 512]) -> Exec<()> {
    let m = u32::from_le_bytes([image[24], image[25], image[26], image[27]]);
    if m & !mxcsr::ALL != 0 { Err(Fault::GP0) } else { Ok(()) }
}

fn restore_x87(fpu: &mut XsaveImage, image: &[u8; 512], wide: bool) {
    fpu.bytes[..24].copy_from_slice(&image[..24]);
    if !wide {
        fpu.bytes[12..16].fill(0);
        fpu.bytes[20..24].fill(0);
    }
    fpu.bytes[X87_BYTES].copy_from_slice(&image[X87_BYTES]);
    // The six bytes above each 80-bit register are not kept.
    for i in 0..8 {
        fpu.bytes[42 + i * 16..48 + i * 16].fill(0);
    }
    fpu.settle_x87();
}

/// Components that differ from their initial configuration. MXCSR is not part of SSE here.
fn in_use(fpu: &XsaveImage) -> u64 {
    const ZEROS: [u8; 256] = [0; 256];
    // Control words as FNINIT leaves them, and nothing else.
    let mut control = [0; 24];
    control[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    debug_assert_eq!(control[..], XsaveImage::init().bytes[..24]);
    let clear = |bytes: &[u8]| *bytes == ZEROS[..bytes.len()];
    let mut bits = 0;
    if fpu.bytes[..24] != control || !clear(&fpu.bytes[X87_BYTES]) {
        bits |= xcr0::X87;
    }
    if !clear(&fpu.bytes[160..416]) {
        bits |= xcr0::SSE;
    }
    if !clear(&fpu.bytes[XSAVE_YMMH..]) {
        bits |= xcr0::AVX;
    }
    bits
}

fn need_xsave(cpu: &Cpu, a: &HelperArgs) -> Exec<()> {
    if cpu.env.cr4 & cr4::OSXSAVE == 0 {
        return Err(Fault::UD);
    }
    if cpu.env.cr0 & cr0::TS != 0 {
        return Err(Fault::NM);
    }
    if a.reg == SUPERVISOR && cpu.env.cpl() != 0 {
        return Err(Fault::GP0);
    }
    need_aligned(cpu, a.a, 64)
}

/// The supervisor forms: XSAVES and XRSTORS. There are no supervisor components, so IA32_XSS is always zero.
const SUPERVISOR: u8 = 3;

/// XSAVE, XSAVEOPT, XSAVEC, XSAVES by `reg`.
pub fn xsave(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    let (optimised, compact) = match a.reg {
        0 => (false, false),
        1 => (true, false),
        _ => (true, true),
    };
    need_xsave(cpu, a)?;
    let wanted = cpu.env.xcr0 & (a.b & 0xffff_ffff | a.c << 32);
    let pkru = cpu.env.msrs.pkru;
    let mut used = (in_use(&cpu.env.fpu) | if pkru != 0 { xcr0::PKRU } else { 0 }) & wanted;
    let high = wanted & xcr0::AVX != 0;
    let len = if high { XSAVE_YMMH + YMM_BYTES } else { XSAVE_YMMH };
    cpu.probe_write(a.a, len, View::Data)?;
    let key_rights = a.a.wrapping_add(pkru_at(compact, wanted));
    if wanted & xcr0::PKRU != 0 {
        cpu.probe_write(key_rights, 8, View::Data)?;
    }
    let mut header = [0; 24];
    cpu.load(a.a.wrapping_add(XSAVE_HEADER as u64), &mut header, View::Data)?;
    let fpu = cpu.env.fpu.clone();
    let custom_mxcsr = fpu.mxcsr() != mxcsr::RESET;
    if compact && wanted & xcr0::SSE != 0 && custom_mxcsr {
        used |= xcr0::SSE;
    }
    let write = if optimised { used } else { wanted };
    if write & xcr0::X87 != 0 {
        let image = legacy_image(&cpu.env, a.size == 8);
        cpu.store(a.a, &image[..24], View::Data)?;
        cpu.store(a.a.wrapping_add(32), &image[X87_BYTES], View::Data)?;
    }
    let with_mxcsr = if compact { write & xcr0::SSE } else { wanted & (xcr0::SSE | xcr0::AVX) };
    if with_mxcsr != 0 {
        cpu.write_u32(a.a.wrapping_add(MXCSR_AT as u64), fpu.mxcsr(), View::Data)?;
        cpu.write_u32(a.a.wrapping_add(28), mxcsr::ALL, View::Data)?;
    }
    if write & xcr0::SSE != 0 {
        let xmm = xmm_bytes(&cpu.env);
        cpu.store(a.a.wrapping_add(160), &fpu.bytes[xmm], View::Data)?;
    }
    if write & xcr0::AVX != 0 {
        let bytes = if cpu.env.is_64bit() { YMM_BYTES } else { YMM_BYTES / 2 };
        let high = &fpu.bytes[XSAVE_YMMH..XSAVE_YMMH + bytes];
        cpu.store(a.a.wrapping_add(XSAVE_YMMH as u64), high, View::Data)?;
    }
    if write & xcr0::PKRU != 0 {
        cpu.write_u64(key_rights, pkru, View::Data)?;
    }
    let old = u64::from_le_bytes(header[..8].try_into().unwrap_or_default());
    let at = a.a.wrapping_add(XSAVE_HEADER as u64);
    if compact {
        cpu.write_u64(at, used, View::Data)?;
        cpu.write_u64(at.wrapping_add(8), wanted | COMPACT, View::Data)?;
    } else {
        cpu.write_u64(at, old & !wanted | used, View::Data)?;
    }
    Ok(Flow::Next)
}

/// XRSTOR and XRSTORS, which takes the compacted form only.
pub fn xrstor(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_xsave(cpu, a)?;
    let wanted = cpu.env.xcr0 & (a.b & 0xffff_ffff | a.c << 32);
    let mut image = XsaveImage::init();
    cpu.load(a.a, &mut image.bytes[..XSAVE_YMMH], View::Data)?;
    let (present, form) = (image.u64_at(XSAVE_HEADER), image.u64_at(XSAVE_HEADER + 8));
    let compact = form & COMPACT != 0;
    let reserved = image.bytes[XSAVE_HEADER + 16..XSAVE_YMMH].iter();
    let allowed = if compact {
        cpu.vm.config.model.has(Feature::Xsavec)
            && form & !COMPACT & !cpu.env.xcr0 == 0
            && present & !form == 0
            && reserved.clone().all(|b| *b == 0)
    } else {
        // Only bytes 8 to 23 of the header are checked in the standard form.
        form == 0 && image.u64_at(XSAVE_HEADER + 16) == 0 && a.reg != SUPERVISOR
    };
    if !allowed || present & !cpu.env.xcr0 != 0 {
        return Err(Fault::GP0);
    }
    let load = wanted & present;
    if load & xcr0::AVX != 0 {
        let at = a.a.wrapping_add(XSAVE_YMMH as u64);
        cpu.load(at, &mut image.bytes[XSAVE_YMMH..], View::Data)?;
    }
    let mut pkru = 0;
    if load & xcr0::PKRU != 0 {
        pkru = cpu.read_u32(a.a.wrapping_add(pkru_at(compact, form)), View::Data)?.into();
    }
    let legacy: [u8; 512] = image.bytes[..512].try_into().unwrap_or([0; 512]);
    let with_mxcsr = if compact { load & xcr0::SSE != 0 } else { wanted & (xcr0::SSE | xcr0::AVX) != 0 };
    if with_mxcsr {
        check_mxcsr(&legacy)?;
    }
    let xmm = xmm_bytes(&cpu.env);
    let ymm = XSAVE_YMMH..XSAVE_YMMH + if cpu.env.is_64bit() { YMM_BYTES } else { YMM_BYTES / 2 };
    let fpu = &mut cpu.env.fpu;
    if wanted & xcr0::X87 != 0 {
        if load & xcr0::X87 != 0 {
            restore_x87(fpu, &legacy, a.size == 8);
        } else {
            let init = XsaveImage::init();
            fpu.bytes[..24].copy_from_slice(&init.bytes[..24]);
            fpu.bytes[X87_BYTES].fill(0);
        }
    }
    if with_mxcsr {
        fpu.bytes[24..28].copy_from_slice(&legacy[24..28]);
    } else if compact && wanted & xcr0::SSE != 0 {
        fpu.set_mxcsr(mxcsr::RESET);
    }
    for (component, range) in [(xcr0::SSE, xmm), (xcr0::AVX, ymm)] {
        if load & component != 0 {
            fpu.bytes[range.clone()].copy_from_slice(&image.bytes[range]);
        } else if wanted & component != 0 {
            fpu.bytes[range].fill(0);
        }
    }
    if wanted & xcr0::PKRU != 0 {
        cpu.env.msrs.pkru = pkru;
        cpu.keys_changed();
    }
    cpu.x87_controlled();
    cpu.mode_changed();
    Ok(Flow::EndBlock)
}

/// XGETBV.
pub fn xgetbv(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    if cpu.env.cr4 & cr4::OSXSAVE == 0 {
        return Err(Fault::UD);
    }
    let value = match cpu.env.gpr[1] as u32 {
        0 => cpu.env.xcr0,
        1 if cpu.vm.config.model.has(Feature::Xgetbv1) => {
            let mut used = in_use(&cpu.env.fpu);
            if cpu.env.fpu.mxcsr() != mxcsr::RESET {
                used |= xcr0::SSE;
            }
            if cpu.env.msrs.pkru != 0 {
                used |= xcr0::PKRU;
            }
            cpu.env.xcr0 & used
        }
        _ => return Err(Fault::GP0),
    };
    cpu.env.gpr[0] = value & 0xffff_ffff;
    cpu.env.gpr[2] = value >> 32;
    Ok(Flow::Next)
}

/// XSETBV.
pub fn xsetbv(cpu: &mut Cpu, _: &HelperArgs) -> Exec<Flow> {
    if cpu.env.cr4 & cr4::OSXSAVE == 0 {
        return Err(Fault::UD);
    }
    if cpu.env.cpl() != 0 || cpu.env.gpr[1] as u32 != 0 {
        return Err(Fault::GP0);
    }
    let value = cpu.env.gpr[0] & 0xffff_ffff | cpu.env.gpr[2] << 32;
    cpu.write_xcr0(value)?;
    Ok(Flow::EndBlock)
}

fn need_sse(cpu: &Cpu) -> Exec<()> {
    if cpu.env.cr0 & cr0::EM != 0 || cpu.env.cr4 & cr4::OSFXSR == 0 {
        return Err(Fault::UD);
    }
    if cpu.env.cr0 & cr0::TS != 0 { Err(Fault::NM) } else { Ok(()) }
}

/// LDMXCSR: value `a`.
pub fn ldmxcsr(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_sse(cpu)?;
    let value = a.a as u32;
    if value & !mxcsr::ALL != 0 {
        return Err(Fault::GP0);
    }
    let masks_change = (cpu.env.fpu.mxcsr() ^ value) & mxcsr::MASKS != 0;
    cpu.env.fpu.set_mxcsr(value);
    if masks_change {
        cpu.mode_changed();
        return Ok(Flow::EndBlock);
    }
    Ok(Flow::Next)
}

/// STMXCSR to `a`.
pub fn stmxcsr(cpu: &mut Cpu, a: &HelperArgs) -> Exec<Flow> {
    need_sse(cpu)?;
    cpu.write_u32(a.a, cpu.env.fpu.mxcsr(), View::Data)?;
    Ok(Flow::Next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::{TestBed, enter_long_mode};

    const AREA: u64 = 0x40_0000;
    const HEADER: u64 = AREA + XSAVE_HEADER as u64;

    /// 64-bit code with two user pages for images, and registers that are all different.
    fn bed() -> (TestBed, Cpu) {
        let t = TestBed::new(4 << 20, "max");
        let mut next = 0x11000;
        for page in 0..2 {
            t.map_page(0x10000, &mut next, AREA + page * 0x1000, 0x20_0000 + page * 0x1000 | 7);
        }
        let mut cpu = t.cpu();
        enter_long_mode(&mut cpu, 0x10000, 0);
        cpu.env.cr4 |= cr4::OSXSAVE;
        cpu.env.xcr0 = xcr0::ALL;
        for i in (160..416).chain(576..832) {
            cpu.env.fpu.bytes[i] = i as u8 | 1;
        }
        for i in 0..8 {
            cpu.env.fpu.set_u64_at(32 + i * 16, i as u64 + 1);
        }
        cpu.env.fpu.set_mxcsr(0x1fa0);
        cpu.mode_changed();
        (t, cpu)
    }
    fn args(mask: u64, reg: u8) -> HelperArgs {
        HelperArgs { a: AREA, b: mask, reg, size: 8, ..HelperArgs::default() }
    }
    fn word(t: &TestBed, at: u64) -> u64 {
        t.get(at - AREA + 0x20_0000)
    }

    #[test]
    fn what_xsave_wrote_xrstor_brings_back() {
        for kind in [0, 1, 2] {
            let (t, mut cpu) = bed();
            let before = cpu.env.fpu.clone();
            xsave(&mut cpu, &args(u64::MAX, kind)).unwrap();
            assert_eq!(word(&t, HEADER), 7, "form {kind}");
            assert_eq!(word(&t, HEADER + 8), if kind == 2 { 7 | COMPACT } else { 0 });
            cpu.env.fpu = XsaveImage::power_up();
            xrstor(&mut cpu, &args(7, 0)).unwrap();
            assert!(cpu.env.fpu == before, "form {kind}");
        }
    }

    #[test]
    fn pkru_is_a_component_of_its_own() {
        for (kind, at) in [(0, PKRU_AT), (2, 832)] {
            let (t, mut cpu) = bed();
            cpu.env.xcr0 |= xcr0::PKRU;
            cpu.env.msrs.pkru = 0x5555_0000;
            xsave(&mut cpu, &args(u64::MAX, kind)).unwrap();
            assert_eq!((word(&t, HEADER), word(&t, AREA + at)), (0x207, 0x5555_0000));
            cpu.env.msrs.pkru = 0;
            xrstor(&mut cpu, &args(0x200, 0)).unwrap();
            assert_eq!(cpu.env.msrs.pkru, 0x5555_0000);
            cpu.write_u64(HEADER, 7, View::Data).unwrap();
            xrstor(&mut cpu, &args(u64::MAX, 0)).unwrap();
            assert_eq!(cpu.env.msrs.pkru, 0);
        }
    }

    #[test]
    fn the_supervisor_forms_need_privilege_and_the_compacted_form() {
        let (t, mut cpu) = bed();
        let before = cpu.env.fpu.clone();
        xsave(&mut cpu, &args(7, SUPERVISOR)).unwrap();
        assert_eq!((word(&t, HEADER), word(&t, HEADER + 8)), (7, 7 | COMPACT));
        cpu.env.fpu = XsaveImage::power_up();
        xrstor(&mut cpu, &args(7, SUPERVISOR)).unwrap();
        assert!(cpu.env.fpu == before);
        cpu.write_u64(HEADER + 8, 0, View::Data).unwrap();
        assert_eq!(xrstor(&mut cpu, &args(7, SUPERVISOR)), Err(Fault::GP0));
        enter_long_mode(&mut cpu, 0x10000, 3);
        cpu.env.cr4 |= cr4::OSXSAVE;
        assert_eq!(xsave(&mut cpu, &args(7, SUPERVISOR)), Err(Fault::GP0));
    }

    #[test]
    fn components_that_are_not_asked_for_stay_in_memory() {
        let (t, mut cpu) = bed();
        cpu.write_u64(HEADER, 0x5, View::Data).unwrap();
        cpu.write_u64(AREA + 576, 99, View::Data).unwrap();
        xsave(&mut cpu, &args(2, 0)).unwrap();
        assert_eq!((word(&t, HEADER), word(&t, AREA + 576)), (7, 99));
        assert_eq!(word(&t, AREA + 24) as u32, 0x1fa0);
    }

    #[test]
    fn initial_components_are_left_out_by_the_optimised_forms() {
        let (t, mut cpu) = bed();
        cpu.env.fpu = XsaveImage::init();
        cpu.write_u64(AREA + 160, 77, View::Data).unwrap();
        xsave(&mut cpu, &args(7, 1)).unwrap();
        assert_eq!((word(&t, HEADER), word(&t, AREA + 160)), (0, 77));
        xsave(&mut cpu, &args(7, 0)).unwrap();
        assert_eq!((word(&t, HEADER), word(&t, AREA + 160)), (0, 0));
        // A custom MXCSR makes SSE count as in use for the compacted form only.
        cpu.env.fpu.set_mxcsr(0x1f00);
        xsave(&mut cpu, &args(7, 2)).unwrap();
        assert_eq!(word(&t, HEADER), 2);
    }

    #[test]
    fn xrstor_initialises_what_the_image_does_not_have() {
        let (_, mut cpu) = bed();
        cpu.write_u32(AREA + 24, 0x1f80, View::Data).unwrap();
        xrstor(&mut cpu, &args(7, 0)).unwrap();
        assert!(cpu.env.fpu.bytes[..24] == XsaveImage::init().bytes[..24]);
        assert!(cpu.env.fpu.bytes[160..416].iter().all(|b| *b == 0));
        assert!(cpu.env.fpu.bytes[576..].iter().all(|b| *b == 0));
    }

    #[test]
    fn a_mask_with_avx_only_loads_mxcsr_and_leaves_xmm_alone() {
        let (_, mut cpu) = bed();
        let xmm = cpu.env.fpu.xmm(3);
        cpu.write_u32(AREA + 24, 0x1f00, View::Data).unwrap();
        xrstor(&mut cpu, &args(4, 0)).unwrap();
        assert_eq!((cpu.env.fpu.mxcsr(), cpu.env.fpu.xmm(3), cpu.env.fpu.ymm_high(3)), (0x1f00, xmm, [0; 2]));
    }

    #[test]
    fn bad_images_and_states_fault_and_change_nothing() {
        type Case = (&'static str, fn(&mut Cpu), u64, u8);
        let cases: &[Case] = &[
            ("misaligned", |_| {}, AREA + 16, vector::GP),
            ("component not in XCR0", |c| c.write_u64(HEADER, 8, View::Data).unwrap(), AREA, vector::GP),
            ("reserved XCOMP_BV", |c| c.write_u64(HEADER + 8, 1, View::Data).unwrap(), AREA, vector::GP),
            ("reserved header", |c| c.write_u64(HEADER + 16, 1, View::Data).unwrap(), AREA, vector::GP),
            (
                "compacted with a component that is not there",
                |c| {
                    c.write_u64(HEADER, 4, View::Data).unwrap();
                    c.write_u64(HEADER + 8, COMPACT | 3, View::Data).unwrap();
                },
                AREA,
                vector::GP,
            ),
            ("reserved MXCSR", |c| c.write_u32(AREA + 24, 1 << 16, View::Data).unwrap(), AREA, vector::GP),
            ("OSXSAVE clear", |c| c.env.cr4 &= !cr4::OSXSAVE, AREA, vector::UD),
            ("TS set", |c| c.env.cr0 |= cr0::TS, AREA, vector::NM),
            ("no page", |_| {}, AREA + 0x8000, vector::PF),
        ];
        for (name, spoil, at, expected) in cases {
            let (_, mut cpu) = bed();
            spoil(&mut cpu);
            let before = cpu.env.fpu.clone();
            let got = xrstor(&mut cpu, &HelperArgs { a: *at, ..args(7, 0) });
            assert_eq!(got.map_err(|f| f.vector), Err(*expected), "{name}");
            assert!(cpu.env.fpu == before, "{name}");
        }
    }

    #[test]
    fn fxsave_writes_its_mask_and_leaves_the_end_of_the_area() {
        let (t, mut cpu) = bed();
        cpu.env.fpu.set_u64_at(8, 0x1122_3344_5566_7788);
        cpu.store(AREA, &[0xee; 512], View::Data).unwrap();
        fxsave(&mut cpu, &args(0, 0)).unwrap();
        assert_eq!(word(&t, AREA + 24), 0xffff << 32 | 0x1fa0);
        assert_eq!(word(&t, AREA + 8), 0x1122_3344_5566_7788);
        assert_eq!(
            (word(&t, AREA + 416), word(&t, AREA + 504)),
            (0xeeee_eeee_eeee_eeee, 0xeeee_eeee_eeee_eeee)
        );
        fxsave(&mut cpu, &HelperArgs { size: 4, ..args(0, 0) }).unwrap();
        assert_eq!(word(&t, AREA + 8), 0x5566_7788);
        let before = cpu.env.fpu.clone();
        cpu.env.fpu.bytes[160..416].fill(0);
        fxrstor(&mut cpu, &args(0, 0)).unwrap();
        assert_eq!(cpu.env.fpu.xmm(15), before.xmm(15));
    }

    #[test]
    fn xcr0_takes_sensible_values_at_cpl_0_only() {
        for (value, ok) in [(1, true), (3, true), (7, true), (0, false), (5, false), (0xff, false)] {
            let (_, mut cpu) = bed();
            (cpu.env.gpr[0], cpu.env.gpr[1], cpu.env.gpr[2]) = (value, 0, 0);
            assert_eq!(xsetbv(&mut cpu, &HelperArgs::default()).is_ok(), ok, "{value:x}");
        }
        let (_, mut cpu) = bed();
        enter_long_mode(&mut cpu, 0x10000, 3);
        cpu.env.cr4 |= cr4::OSXSAVE;
        assert_eq!(xsetbv(&mut cpu, &HelperArgs::default()), Err(Fault::GP0));
    }
}
