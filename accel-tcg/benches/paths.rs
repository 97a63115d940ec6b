//! What the engine's own paths cost: nanoseconds for each, without the translated code around them. The least of many
//! short runs, so that a busy host shows little. `cargo bench -p anura-accel-tcg`, with a part of a name to run those.
use anura_accel_tcg::deliver::{deliver, iret, sys};
use anura_accel_tcg::env::{Cpu, Fault};
use anura_accel_tcg::helpers::{HelperArgs, fpu, seg, string, system};
use anura_accel_tcg::mmu::View;
use anura_accel_tcg::testbed::{TestBed, enter_long_mode};
use anura_x86::desc::tss64;
use anura_x86::regs::{cr3, cr4};
use anura_x86::{Segment, TableReg, msr};
use std::hint::black_box;
use std::time::Instant;

const ROOTS: [u64; 2] = [0x10_0000, 0x14_0000];
const RW: u64 = 7;
const GLOBAL: u64 = 1 << 8;
/// Pages of data, code, stack and tables of the processor.
const DATA: u64 = 0x40_0000;
const KERNEL: u64 = 0xffff_8880_0000_0000;

/// Two contexts with 128 pages of data each, and a global kernel with GDT, IDT, TSS and stack.
fn bed(model: &str) -> (TestBed, Cpu) {
    let t = TestBed::new(16 << 20, model);
    for (c, root) in ROOTS.into_iter().enumerate() {
        let mut next = root + 0x1000;
        for n in 0..128u64 {
            t.map_page(
                root,
                &mut next,
                DATA + n * 0x1000,
                0x40_0000 + c as u64 * 0x10_0000 + n * 0x1000 | RW,
            );
        }
        for n in 0..128u64 {
            t.map_page(root, &mut next, KERNEL + n * 0x1000, 0x80_0000 + n * 0x1000 | 3 | GLOBAL);
        }
    }
    let mut cpu = t.cpu();
    enter_long_mode(&mut cpu, ROOTS[0], 0);
    // GDT: code 0x10, data 0x18, user data 0x28, user code 0x30.
    let gdt = 0x80_0000;
    for (n, d) in [(2, 0x00af_9b00_0000_ffff), (3, 0x00cf_9300_0000_ffff), (5, 0x00cf_f300_0000_ffff)] {
        t.put(gdt + n * 8, d);
    }
    t.put(gdt + 6 * 8, 0x00af_fb00_0000_ffff_u64);
    let idt = 0x80_1000;
    let handler = KERNEL + 0x3000;
    for n in 0..32 {
        let kind = if n == 3 { 0xee00 } else { 0x8e00 };
        t.put(idt + n * 16, handler & 0xffff | 0x10 << 16 | kind << 32 | (handler >> 16 & 0xffff) << 48);
        t.put(idt + n * 16 + 8, handler >> 32);
    }
    t.put(0x80_2000 + tss64::RSP0, KERNEL + 0x6000);
    cpu.env.gdtr = TableReg { base: KERNEL, limit: 0x7f };
    cpu.env.idtr = TableReg { base: KERNEL + 0x1000, limit: 0x1ff };
    cpu.env.tr = Segment::new(0x40, KERNEL + 0x2000, 0x67, 0x8b);
    cpu.env.gpr[4] = KERNEL + 0x5ff0;
    cpu.env.rip = KERNEL + 0x3000;
    cpu.env.msrs.star = 0x23_0010 << 32;
    cpu.env.msrs.lstar = KERNEL + 0x3000;
    (t, cpu)
}

fn user(cpu: &mut Cpu) {
    cpu.env.seg[1] = Segment::new(0x33, 0, u32::MAX, 0xa0fb);
    cpu.env.seg[2] = Segment::new(0x2b, 0, u32::MAX, 0xc0f3);
    cpu.env.gpr[4] = DATA + 0x8000;
    cpu.env.rip = DATA;
    cpu.mode_changed();
}

struct Bench {
    only: Option<String>,
}

impl Bench {
    fn run(&self, name: &str, each: u32, mut f: impl FnMut()) {
        if self.only.as_ref().is_some_and(|o| !name.contains(o.as_str())) {
            return;
        }
        let mut best = f64::MAX;
        for _ in 0..200 {
            let start = Instant::now();
            for _ in 0..each {
                f();
            }
            best = best.min(start.elapsed().as_nanos() as f64 / f64::from(each));
        }
        println!("{name:32} {best:9.1} ns");
    }
}

fn main() {
    let b = Bench { only: std::env::args().skip(1).find(|a| !a.starts_with('-')) };
    let none = HelperArgs::default();
    let with = |f: fn(&mut HelperArgs)| {
        let mut a = HelperArgs::default();
        f(&mut a);
        a
    };

    let (_t, mut cpu) = bed("max");
    let quad = HelperArgs { size: 8, ..none };
    b.run("int3 and iretq, kernel", 200, || {
        sys::int3(&mut cpu, &HelperArgs { next_rip: KERNEL + 0x3001, ..none }).unwrap();
        iret::iret(&mut cpu, &quad).unwrap();
    });
    user(&mut cpu);
    b.run("int3 and iretq, user", 200, || {
        sys::int3(&mut cpu, &HelperArgs { next_rip: DATA + 1, ..none }).unwrap();
        iret::iret(&mut cpu, &quad).unwrap();
    });
    b.run("page fault and iretq, user", 200, || {
        let f = cpu.read_u64(0x7000_0000, View::Data).unwrap_err();
        deliver(&mut cpu, f.into()).unwrap();
        cpu.env.gpr[4] += 8;
        iret::iret(&mut cpu, &quad).unwrap();
    });
    b.run("syscall and sysretq", 200, || {
        sys::syscall(&mut cpu, &HelperArgs { next_rip: DATA + 2, ..none }).unwrap();
        sys::sysret(&mut cpu, &quad).unwrap();
    });
    b.run("general protection delivery", 200, || {
        deliver(&mut cpu, Fault::GP0.into()).unwrap();
        cpu.env.gpr[4] += 8;
        iret::iret(&mut cpu, &quad).unwrap();
    });

    let (t, mut cpu) = bed("max");
    b.run("mov ss", 200, || {
        seg::mov_to_sreg(&mut cpu, &HelperArgs { a: 0x18, reg: 2, ..none }).unwrap();
    });
    b.run("mov ds", 200, || {
        seg::mov_to_sreg(&mut cpu, &HelperArgs { a: 0x2b, reg: 3, ..none }).unwrap();
    });
    b.run("mov ds, null", 200, || {
        seg::mov_to_sreg(&mut cpu, &HelperArgs { a: 0, reg: 3, ..none }).unwrap();
    });
    b.run("swapgs", 200, || {
        seg::swapgs(&mut cpu, &none).unwrap();
    });
    b.run("wrmsr fs_base", 200, || {
        (cpu.env.gpr[1], cpu.env.gpr[0], cpu.env.gpr[2]) = (msr::FS_BASE.into(), 0x1000, 0);
        system::wrmsr(&mut cpu, &none).unwrap();
    });
    b.run("stac and clac", 200, || {
        system::stac(&mut cpu, &none).unwrap();
        system::clac(&mut cpu, &none).unwrap();
    });
    cpu.write_cr4(cpu.env.cr4 | cr4::SMAP).unwrap();
    b.run("stac and clac, smap", 200, || {
        system::stac(&mut cpu, &none).unwrap();
        system::clac(&mut cpu, &none).unwrap();
    });
    cpu.write_cr4(cpu.env.cr4 & !cr4::SMAP).unwrap();
    cpu.write_cr4(cpu.env.cr4 | cr4::OSXSAVE).unwrap();
    cpu.write_xcr0(7).unwrap();
    let area = HelperArgs { a: KERNEL + 0x7000, b: 7, size: 8, ..none };
    b.run("xsave", 200, || {
        fpu::xsave(&mut cpu, &area).unwrap();
    });
    b.run("xrstor", 200, || {
        fpu::xrstor(&mut cpu, &area).unwrap();
    });
    b.run("fxsave", 200, || {
        fpu::fxsave(&mut cpu, &area).unwrap();
    });
    b.run("fxrstor", 200, || {
        fpu::fxrstor(&mut cpu, &area).unwrap();
    });
    b.run("refresh_views", 200, || {
        cpu.refresh_views();
    });
    b.run("mode_changed", 200, || cpu.mode_changed());

    let touch = |cpu: &mut Cpu, pages: u64| {
        for n in 0..pages {
            black_box(cpu.read_u64(DATA + n * 0x1000 + n * 64, View::Data).unwrap());
        }
    };
    b.run("64 hits", 20, || touch(&mut cpu, 64));
    b.run("invlpg", 64, || {
        system::invlpg(&mut cpu, &HelperArgs { a: DATA + 0x7f000, ..none }).unwrap();
    });
    b.run("invlpg and a miss", 64, || {
        system::invlpg(&mut cpu, &HelperArgs { a: DATA + 0x3000, ..none }).unwrap();
        black_box(cpu.read_u64(DATA + 0x3000, View::Data).unwrap());
    });
    let mut n = 0;
    b.run("miss by conflict", 64, || {
        n = (n + 1) % 64;
        black_box(cpu.read_u64(KERNEL + n * 0x1000, View::Data).unwrap());
        black_box(cpu.read_u64(DATA + n * 0x1000, View::Data).unwrap());
    });
    b.run("cr3 same root, 64 touches", 20, || {
        cpu.write_cr3(ROOTS[0]).unwrap();
        touch(&mut cpu, 64);
    });
    let mut c = 0;
    b.run("cr3 two roots, 64 touches", 20, || {
        c ^= 1;
        cpu.write_cr3(ROOTS[c]).unwrap();
        touch(&mut cpu, 64);
    });
    let at = ROOTS[0];
    let mut table = at;
    for shift in [39, 30, 21] {
        table = t.get(table + (DATA >> shift & 511) * 8) & anura_x86::paging::ADDRESS;
    }
    b.run("cr3 with 8 of 64 changed", 20, || {
        for k in 0..8 {
            let pte = table + (DATA >> 12 & 511) * 8 + k * 64;
            let v = t.get(pte);
            t.put(pte, v ^ 1 << 9);
        }
        cpu.write_cr3(ROOTS[0]).unwrap();
        touch(&mut cpu, 64);
    });
    cpu.write_cr3(ROOTS[0]).unwrap();
    cpu.write_cr4(cpu.env.cr4 | cr4::PCIDE).unwrap();
    b.run("cr3 two pcids kept, 64 touches", 20, || {
        c ^= 1;
        cpu.write_cr3(ROOTS[c] | c as u64 | cr3::NOFLUSH).unwrap();
        touch(&mut cpu, 64);
    });
    b.run("cr3 two pcids kept", 20, || {
        c ^= 1;
        cpu.write_cr3(ROOTS[c] | c as u64 | cr3::NOFLUSH).unwrap();
    });

    let kinds =
        [("movs", string::MOVS), ("stos", string::STOS), ("cmps", string::CMPS), ("scas", string::SCAS)];
    for (name, kind) in kinds {
        for (count, size) in [(8u64, 1u8), (32, 1), (256, 1), (4096, 1), (65536, 1), (8192, 8)] {
            for down in [false, true] {
                let mut a = with(|a| (a.asize, a.rep, a.reg2) = (8, 1, 3));
                (a.reg, a.size) = (kind, size);
                let text = format!("rep {name} {count} x {size}{}", if down { " down" } else { "" });
                let at = if down { (count - 1) * u64::from(size) } else { 0 };
                b.run(&text, 20, || {
                    cpu.env.eflags_sys = if down { 1 << 10 } else { 0 };
                    cpu.env.gpr[0] = 0;
                    (cpu.env.gpr[1], cpu.env.gpr[6], cpu.env.gpr[7]) =
                        (count, DATA + 0x100 + at, DATA + 0x4_0140 + at);
                    string::unlimited(&mut cpu);
                    string::string(&mut cpu, &a).unwrap();
                    assert_eq!(cpu.env.gpr[1], 0);
                });
            }
        }
    }
}
