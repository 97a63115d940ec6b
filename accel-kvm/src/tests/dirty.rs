//! The dirty log of this host's own kernel.

use anura_memory::DirtyClient;
use anura_x86::CpuState;

use super::*;

#[test]
fn the_real_kernel_logs_what_a_guest_writes_once_somebody_asks_again() {
    if let Err(why) = crate::Kvm::default().kind() {
        println!("skipped: {why}");
        return;
    }
    let system = probe::open().unwrap();
    let map = MemoryMap::new();
    let (root, ports) = (Region::container("memory", 1 << 40), Region::container("io", 1 << 16));
    let ram = RamBlock::new("ram", 0x10000).unwrap();
    // again: mov [3000h], al; mov [5000h], al; hlt; jmp again.
    ram.write(0, &[0xa2, 0x00, 0x30, 0xa2, 0x00, 0x50, 0xf4, 0xeb, 0xf7]);
    let mut t = map.transaction();
    t.add(&root, 0, &Region::ram("ram", ram.clone()), 0);
    t.commit();
    let spaces = VmSpaces {
        memory: map.create_space("memory", &root),
        ports: map.create_space("io", &ports),
        clock: Clock::stepped(),
        ram: vec![],
    };
    let config = VmConfig {
        platform: Arc::new(Board::default()),
        model: CpuModel::named("qemu64", &FeatureSet::available()).unwrap(),
        topology: Topology::default(),
        tsc_khz: crate::Kvm::default().kind().unwrap().tsc_khz,
        counted: false,
    };
    let choice = Choice { stepping: Stepping::Off, irqchip: Irqchip::Off };
    // As on a host with guest kernels in hardware: no log from the start.
    let vm = KvmVm::new(&system, &spaces, &config, None, choice, false).unwrap();
    let mut vcpu = vm.create_vcpu(0, CpuSignal::new()).unwrap();
    let mut state = CpuState::reset(0);
    (state.rip, state.seg[1].base, state.seg[1].selector) = (0, 0, 0);
    let mut written = Vec::new();
    for _ in 0..4 {
        ram.tracker().take_dirty(DirtyClient::Migration, 0, 0x10000, |_| {});
        vcpu.set_state(&state).unwrap();
        vm.go(&mut [&mut *vcpu as &mut dyn Vcpu]);
        assert_eq!(vcpu.run(Budget::Unlimited), VcpuExit::Halted);
        vm.stand(&mut [&mut *vcpu as &mut dyn Vcpu]);
        vm.sync_dirty();
        let mut pages = Vec::new();
        ram.tracker().take_dirty(DirtyClient::Migration, 0, 0x10000, |at| pages.push(at >> 12));
        written.push(pages);
    }
    let all: Vec<u64> = (0..16).collect();
    assert_eq!(written, [all.clone(), all, vec![3, 5], vec![3, 5]]);
}
