//! The KVM engine: guest code on the host's processor, through Linux's `/dev/kvm`.
//!
//! Three kinds of descriptor: the system (`host`), the machine (`vm`, `slots`) and its processors (`vcpu`).
//! The interrupt chips are our own, the same as on the software engines, but for the local APICs: those are in the
//! kernel where it runs guests in hardware (`irqchip`). What the kernel cannot emulate is stepped by a software engine that whoever makes this one hands in.

#[cfg(target_arch = "x86_64")]
mod bells;
#[cfg(all(target_arch = "x86_64", feature = "bench"))]
pub mod bench;
mod choice;
#[cfg(target_arch = "x86_64")]
mod cpuid;
#[cfg(not(target_arch = "x86_64"))]
mod elsewhere;
#[cfg(target_arch = "x86_64")]
mod engine;
#[cfg(target_arch = "x86_64")]
mod gate;
#[cfg(target_arch = "x86_64")]
mod host;
#[cfg(target_arch = "x86_64")]
pub mod ioctls;
#[cfg(target_arch = "x86_64")]
mod irqchip;
mod kind;
#[cfg(target_arch = "x86_64")]
mod probe;
#[cfg(all(target_arch = "x86_64", any(test, feature = "bench")))]
mod scripted;
#[cfg(target_arch = "x86_64")]
mod slots;
#[cfg(target_arch = "x86_64")]
mod state;
#[cfg(all(target_arch = "x86_64", test))]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vcpu;
#[cfg(target_arch = "x86_64")]
mod vm;

pub use choice::{Choice, Irqchip, Stepping};
#[cfg(not(target_arch = "x86_64"))]
pub use elsewhere::Kvm;
#[cfg(target_arch = "x86_64")]
pub use engine::Kvm;
pub use kind::{Kind, Module, module};
