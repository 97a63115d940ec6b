//! Blocks as text.

use super::help::Help;
use super::op::{Attr, Block, Imm, Op, Ref};
use std::fmt::Write;

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const HIGH: [&str; 4] = ["ah", "ch", "dh", "bh"];
const BASES: [&str; 6] = ["es_base", "cs_base", "ss_base", "ds_base", "fs_base", "gs_base"];

const SELECTORS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// Names of the attribute bits that are written behind the operands.
pub(super) const WORDS: [(u8, &str); 3] =
    [(Attr::LOCK, "lock"), (Attr::STACK, "stack"), (Attr::ALIGNED, "aligned")];

/// Name of a reference that is neither temporary nor constant.
pub(super) fn fixed_refs() -> impl Iterator<Item = (Ref, String)> {
    let gpr = (0..16).map(|i| (Ref::gpr(i), GPR[i as usize].to_string()));
    let high = (0..4).map(|i| (Ref::high(i), HIGH[i as usize].to_string()));
    let base = (0..6).map(|i| (Ref::seg_base(i), BASES[i as usize].to_string()));
    let sel = (0..6).map(|i| (Ref::seg_sel(i), SELECTORS[i as usize].to_string()));
    let xmm = (0..16).map(|i| (Ref::xmm(i), format!("xmm{i}")));
    gpr.chain(high).chain(base).chain(sel).chain(xmm).chain([(Ref::NONE, "none".to_string())])
}

/// A reference as text.
pub fn reference(b: &Block, r: Ref) -> String {
    if let Some(t) = r.as_temp() {
        return format!("t{t}");
    }
    if let Some(v) = b.const_value(r) {
        return format!("{v:#x}");
    }
    if let Some(n) = r.as_gpr() {
        return GPR[n as usize].into();
    }
    if let Some(n) = r.as_high() {
        return HIGH[n as usize].into();
    }
    if let Some(n) = r.as_seg_base() {
        return BASES[n as usize].into();
    }
    if let Some(n) = r.as_seg_sel() {
        return SELECTORS[n as usize].into();
    }
    if let Some(n) = r.as_xmm() {
        return format!("xmm{n}");
    }
    "none".into()
}

/// One operation as text, without the instruction column.
pub fn op(b: &Block, o: &Op) -> String {
    let info = o.op.info();
    let mut s = String::new();
    if info.dst {
        let _ = write!(s, "{} = ", reference(b, o.dst));
    }
    s.push_str(info.name);
    if o.attr.flags() {
        s.push_str(".f");
    }
    match info.imm {
        Imm::Cond => {
            let _ = write!(s, ".{}", o.cond().name());
        }
        Imm::From => {
            let _ = write!(s, ".{}", o.from_ty().name());
        }
        _ => {}
    }
    let _ = write!(s, ".{}", o.ty.name());
    let mut args: Vec<String> =
        [o.a, o.b, o.c][..info.args as usize].iter().map(|&r| reference(b, r)).collect();
    match info.imm {
        Imm::None | Imm::Cond | Imm::From => {}
        Imm::Num => args.push(format!("{:#x}", o.imm)),
        Imm::Disp => {
            args.push(format!("{}", 1u32 << o.attr.scale()));
            let d = i64::from(o.imm as i32);
            args.push(if d < 0 { format!("-{:#x}", -d) } else { format!("{d:#x}") });
        }
        Imm::Call => args.push(match b.calls.get(o.imm as usize) {
            Some(c) => format!(
                "{}:{}:{}:{}:{}:{}:{}:{:#x}",
                Help::ALL.get(c.id as usize).map_or("?", |h| h.name()),
                c.reg,
                c.reg2,
                c.size,
                c.asize,
                u8::from(c.mem),
                c.rep,
                c.imm
            ),
            None => "?".into(),
        }),
        Imm::Opaque => args.push(match b.opaques.get(o.imm as usize) {
            Some(x) => x.bytes.iter().map(|v| format!("{v:02x}")).collect(),
            None => "?".into(),
        }),
    }
    if !args.is_empty() {
        s.push(' ');
        s.push_str(&args.join(", "));
    }
    for (bit, word) in WORDS {
        if info.imm != Imm::Disp && o.attr.0 & bit != 0 {
            let _ = write!(s, " !{word}");
        }
    }
    s
}

/// A whole block as text.
pub fn block(b: &Block) -> String {
    let mut s = format!("block pa={:#x} va={:#x} key={:#x}\n", b.pa, b.va, b.key);
    let mut ops = b.ops.iter().peekable();
    for (i, insn) in b.insns.iter().enumerate() {
        let mut head = format!("{:2}/{}", i, insn.len);
        let mut any = false;
        while let Some(o) = ops.next_if(|o| o.insn as usize == i) {
            let _ = writeln!(s, "{head:6}{}", op(b, o));
            head.clear();
            any = true;
        }
        if !any {
            let _ = writeln!(s, "{head}");
        }
    }
    s
}
