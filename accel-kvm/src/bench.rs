//! What an exit costs us alone: the loop around KVM_RUN on a kernel that takes no time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anura_accel::quiet::EmptyBoard;
use anura_accel::{AccelVm, Budget, Vcpu, VmConfig, VmSpaces};
use anura_memory::{Access, AccessRules, IoHandler, MemoryMap, RamBlock, Region};
use anura_vmcore::{Clock, CpuSignal};
use anura_x86::{CpuModel, FeatureSet, Topology};
use kvm_bindings::*;

use crate::host::RunPage;
use crate::scripted::Scripted;
use crate::{Choice, Irqchip, Stepping, vm::KvmVm};

#[derive(Default)]
struct Register(AtomicU64);

impl IoHandler for Register {
    fn read(&self, _: Access) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn write(&self, _: Access, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }
}

fn out(page: &mut RunPage) {
    page.get().exit_reason = KVM_EXIT_IO;
    page.get().__bindgen_anon_1.io = kvm_run__bindgen_ty_1__bindgen_ty_4 {
        direction: KVM_EXIT_IO_OUT as u8,
        size: 1,
        port: 0x60,
        count: 1,
        data_offset: 4096,
    };
}

fn store(page: &mut RunPage) {
    page.get().exit_reason = KVM_EXIT_MMIO;
    page.get().__bindgen_anon_1.mmio =
        kvm_run__bindgen_ty_1__bindgen_ty_6 { phys_addr: 0x20000, data: [1; 8], len: 4, is_write: 1 };
}

/// The time of one exit: a port write, or a write of memory that is a register.
pub fn exit(mmio: bool, split: bool, exits: u64) -> Result<Duration, String> {
    let map = MemoryMap::new();
    let (root, ports) = (Region::container("memory", 1 << 40), Region::container("io", 1 << 16));
    let ram = RamBlock::new("ram", 0x10000).map_err(|e| e.to_string())?;
    let register = Arc::new(Register::default());
    let mut t = map.transaction();
    t.add(&root, 0, &Region::ram("ram", ram), 0);
    t.add(&root, 0x20000, &Region::io("mmio", 0x1000, register.clone(), AccessRules::any(8)), 0);
    t.add(&ports, 0x60, &Region::io("port", 4, register, AccessRules::any(4)), 0);
    t.commit();
    let spaces = VmSpaces {
        memory: map.create_space("memory", &root),
        ports: map.create_space("io", &ports),
        clock: Clock::stepped(),
        ram: vec![],
    };
    let config = VmConfig {
        platform: Arc::new(EmptyBoard::default()),
        model: CpuModel::named("qemu64", &FeatureSet::available()).map_err(|e| e.to_string())?,
        topology: Topology::default(),
        tsc_khz: 1_000_000,
        counted: false,
    };
    let script = Scripted::new(vec![]);
    let irqchip = if split { Irqchip::Split } else { Irqchip::Off };
    let choice = Choice { stepping: Stepping::Off, irqchip };
    let vm = KvmVm::new(&script, &spaces, &config, None, choice, false).map_err(|e| e.to_string())?;
    let mut vcpu = vm.create_vcpu(0, CpuSignal::new()).map_err(|e| e.to_string())?;
    vm.go(&mut [&mut *vcpu as &mut dyn Vcpu]);
    script.repeat(if mmio { store } else { out }, exits);
    let start = Instant::now();
    vcpu.run(Budget::Unlimited);
    Ok(start.elapsed() / u32::try_from(exits).unwrap_or(u32::MAX))
}
