//! Code that is made, changed and moved while it runs.

use super::bench::{Bench, Rng, Test, everywhere, mix};
use super::os::Mapping;

macro_rules! tests {
    ($($name:literal => $run:ident),* $(,)?) => {
        /// The tests of this group.
        pub const TESTS: &[Test] = &[$(Test { group: "code", name: $name, lacks: everywhere, run: $run }),*];
    };
}

tests! {
    "fresh-code" => fresh, "fresh-pages" => fresh_pages, "self-modifying" => self_modifying, "patched-constant" => patched_constant,
    "patched-call" => patched_call, "overlay" => overlay, "data-beside-code" => data_beside, "stack-beside-code" => stack_beside,
    "write-then-execute" => toggle,
}

const ALL: libc::c_int = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;

/// MOV RAX, RDI; then `steps` of ADD EAX, imm32; ROL RAX, imm8; XOR RAX, imm32; then RET.
fn function(rng: &mut Rng, steps: u32) -> Vec<u8> {
    let mut code = vec![0x48, 0x89, 0xf8];
    for _ in 0..steps {
        code.push(0x05);
        code.extend(rng.next32().to_le_bytes());
        code.extend([0x48, 0xc1, 0xc0, rng.next32() as u8 & 63]);
        code.extend([0x48, 0x35]);
        code.extend(rng.next32().to_le_bytes());
    }
    code.push(0xc3);
    code
}

/// Functions of some 30 instructions, each called twice, in a ring of 256 KiB.
fn fresh(b: &mut Bench) -> u64 {
    const SIZE: usize = 256 << 10;
    let map = Mapping::new(SIZE, ALL);
    let mut rng = Rng::new(100);
    let (mut at, mut sum) = (0, 0);
    for _ in 0..b.n(7000) {
        let steps = 6 + rng.below(8);
        let code = function(&mut rng, steps);
        if at + code.len() > SIZE {
            at = 0;
        }
        map.write_all(at, &code);
        for argument in 0..2 {
            // SAFETY: a whole function was just written there.
            sum = mix(sum, unsafe { map.call(at, argument) });
        }
        at = (at + code.len()).next_multiple_of(16);
    }
    sum
}

/// A new mapping for each function, as loaders and plug-ins make them.
fn fresh_pages(b: &mut Bench) -> u64 {
    let mut rng = Rng::new(101);
    (0..b.n(3500)).fold(0, |s, i| {
        let map = Mapping::new(4096, libc::PROT_READ | libc::PROT_WRITE);
        let at = (i as usize % 8) * 64;
        map.write_all(at, &function(&mut rng, 10));
        map.protect(0, 4096, libc::PROT_READ | libc::PROT_EXEC);
        // SAFETY: a whole function was just written there.
        mix(s, unsafe { map.call(at, s) })
    })
}

/// A loop that changes the constant of its own next instruction.
fn self_modifying(b: &mut Bench) -> u64 {
    let map = Mapping::new(4096, ALL);
    #[rustfmt::skip]
    let code = [
        0x31, 0xc0,                                     // xor eax, eax
        0xff, 0x05, 0x01, 0x00, 0x00, 0x00,             // again: inc dword ptr [constant]
        0x05, 0x07, 0x00, 0x00, 0x00,                   // add eax, constant
        0xff, 0xcf,                                     // dec edi
        0x75, 0xf1,                                     // jnz again
        0xc3,                                           // ret
    ];
    map.write_all(64, &code);
    let rounds = b.n(40_000);
    // SAFETY: a whole function was just written there.
    unsafe { map.call(64, rounds) }
}

/// A constant is patched from outside, then the function is called eight times.
fn patched_constant(b: &mut Bench) -> u64 {
    let map = Mapping::new(4096, ALL);
    // mov eax, constant; add rax, rdi; imul rax, rdi; ret
    map.write_all(0, &[0xb8, 0, 0, 0, 0, 0x48, 0x01, 0xf8, 0x48, 0x0f, 0xaf, 0xc7, 0xc3]);
    let mut sum = 0;
    for i in 0..b.n(40_000) {
        map.write32(1, i as u32);
        for argument in 0..8 {
            // SAFETY: a whole function stands there, whatever the constant is.
            sum = mix(sum, unsafe { map.call(0, argument) });
        }
    }
    sum
}

/// A call is patched to another target, as linkers of translated code and inline caches do.
fn patched_call(b: &mut Bench) -> u64 {
    let map = Mapping::new(16384, ALL);
    let mut rng = Rng::new(102);
    // sub rsp, 8; call target; add rsp, 8; ret
    map.write_all(0, &[0x48, 0x83, 0xec, 8, 0xe8, 0, 0, 0, 0, 0x48, 0x83, 0xc4, 8, 0xc3]);
    for target in 0..8 {
        map.write_all(4096 + target * 512, &function(&mut rng, 4));
    }
    let mut sum = 0;
    for i in 0..b.n(50_000) {
        map.write32(5, (4096 + (i as u32 * 3 % 8) * 512) - 9);
        for argument in 0..8 {
            // SAFETY: the call has one of the eight functions for its target.
            sum = mix(sum, unsafe { map.call(0, argument) });
        }
    }
    sum
}

/// Two pages of code take turns in one place.
fn overlay(b: &mut Bench) -> u64 {
    let map = Mapping::new(4096, ALL);
    let mut rng = Rng::new(103);
    let mut page = || -> Vec<u8> {
        let mut page = Vec::new();
        for _ in 0..16 {
            let code = function(&mut rng, 8);
            page.resize(page.len().next_multiple_of(256), 0xcc);
            page.extend(code);
        }
        page
    };
    let pages = [page(), page()];
    let mut sum = 0;
    for i in 0..b.n(1200) {
        map.write_all(0, &pages[i as usize % 2]);
        for function in 0..16 {
            // SAFETY: both pages have a function at each of these places.
            sum = mix(sum, unsafe { map.call(function * 256, sum) });
        }
    }
    sum
}

/// Counters on the page of the code that counts.
fn data_beside(b: &mut Bench) -> u64 {
    let map = Mapping::new(4096, ALL);
    #[rustfmt::skip]
    let code = [
        0x31, 0xc0,                                     // xor eax, eax
        0x48, 0xff, 0x05, 0xf7, 0x03, 0x00, 0x00,       // again: inc qword ptr [0x400]
        0x48, 0x01, 0x3d, 0xf8, 0x03, 0x00, 0x00,       // add qword ptr [0x408], rdi
        0x48, 0x03, 0x05, 0xf1, 0x03, 0x00, 0x00,       // add rax, qword ptr [0x408]
        0x48, 0xff, 0xcf,                               // dec rdi
        0x75, 0xe6,                                     // jnz again
        0xc3,                                           // ret
    ];
    map.write_all(0, &code);
    (0..b.n(300)).fold(0, |s, _| {
        // SAFETY: a whole function stands there; it writes 16 bytes further on, where no code is.
        mix(s, unsafe { map.call(0, 4096) })
    })
}

/// A stack on the page of the code that uses it, as trampolines of nested functions are.
fn stack_beside(b: &mut Bench) -> u64 {
    let map = Mapping::new(4096, ALL);
    #[rustfmt::skip]
    let code = [
        0x49, 0x89, 0xe0,                               // mov r8, rsp
        0x48, 0x8d, 0x25, 0xf6, 0x0d, 0x00, 0x00,       // lea rsp, [0xe00]
        0x31, 0xc0,                                     // xor eax, eax
        0x57,                                           // again: push rdi
        0xe8, 0x08, 0x00, 0x00, 0x00,                   // call inner
        0x59,                                           // pop rcx
        0x48, 0xff, 0xcf,                               // dec rdi
        0x75, 0xf4,                                     // jnz again
        0xeb, 0x09,                                     // jmp out
        0x48, 0x03, 0x44, 0x24, 0x08,                   // inner: add rax, qword ptr [rsp + 8]
        0xd1, 0xc0,                                     // rol eax, 1
        0xc3,                                           // ret
        0x90,                                           // nop
        0x4c, 0x89, 0xc4,                               // out: mov rsp, r8
        0xc3,                                           // ret
    ];
    map.write_all(0, &code);
    (0..b.n(150)).fold(0, |s, _| {
        // SAFETY: a whole function stands there; its stack is the page's other half, and it takes the old one again. A
        // signal in between would find room for its frame in the same mapping's upper half or end this program.
        mix(s, unsafe { map.call(0, 4096) })
    })
}

/// A page is made writable, changed, made executable and run.
fn toggle(b: &mut Bench) -> u64 {
    let map = Mapping::new(8192, libc::PROT_READ | libc::PROT_WRITE);
    let mut rng = Rng::new(104);
    (0..b.n(3500)).fold(0, |s, i| {
        let at = (i as usize % 16) * 256;
        map.protect(0, 4096, libc::PROT_READ | libc::PROT_WRITE);
        map.write_all(at, &function(&mut rng, 10));
        map.protect(0, 4096, libc::PROT_READ | libc::PROT_EXEC);
        let earlier = ((i / 2) as usize % 16) * 256;
        // SAFETY: functions stand at both places, since the earlier one is never ahead of this one.
        unsafe { mix(mix(s, map.call(at, s)), map.call(earlier, s)) }
    })
}
