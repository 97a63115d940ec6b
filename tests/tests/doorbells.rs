//! One test for doorbells on every engine: the device sees each write, however the engine brings it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anura_accel::quiet::EmptyBoard;
use anura_accel::{Accelerator, Budget, Vcpu, VcpuExit, VmConfig, VmSpaces};
use anura_accel_kvm::Kvm;
use anura_accel_tcg::Interp;
use anura_memory::{Access, AccessRules, Doorbell, IoHandler, MemoryMap, RamBlock, Region};
use anura_vmcore::{Clock, CpuSignal, Width};
use anura_x86::{CpuModel, CpuState, FeatureSet, Topology};

/// Counts writes of 0x77 to its register 2, and of anything to the others.
#[derive(Default)]
struct Device {
    rung: AtomicU64,
    other: AtomicU64,
}

impl IoHandler for Device {
    fn read(&self, _: Access) -> u64 {
        0
    }
    fn write(&self, a: Access, value: u64) {
        let count = if (a.offset, value) == (2, 0x77) { &self.rung } else { &self.other };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

/// Of each device: rings, and other writes.
type Counts = Vec<(u64, u64)>;
/// Why the guest was left, and how often.
type Exits = Vec<(&'static str, u64)>;

const RINGS: u16 = 1000;

/// The guest rings a port and an address a thousand times each; what each device counted, and the exits.
fn run(engine: &dyn Accelerator) -> (Counts, Exits) {
    let map = MemoryMap::new();
    let (root, io) = (Region::container("memory", 1 << 40), Region::container("io", 1 << 16));
    let devices = [Arc::new(Device::default()), Arc::new(Device::default())];
    let bell = Doorbell { offset: 2, width: Width::W1, value: Some(0x77) };
    let region = |device: &Arc<Device>| {
        Region::io_with_doorbells("bell", 0x1000, device.clone(), AccessRules::any(4), &[bell])
    };
    let ram = RamBlock::new("ram", 0x10000).unwrap();
    // mov cx, RINGS; mov dx, 0x1002; mov al, 0x77; mov bx, 0x8000; mov ds, bx
    let [low, high] = RINGS.to_le_bytes();
    let mut code = vec![0xb9, low, high, 0xba, 0x02, 0x10, 0xb0, 0x77, 0xbb, 0x00, 0x80, 0x8e, 0xdb];
    // again: out dx, al; mov [2], al; loop again; mov al, 1; out dx, al; hlt
    code.extend([0xee, 0xa2, 0x02, 0x00, 0xe2, 0xfa, 0xb0, 0x01, 0xee, 0xf4]);
    ram.write(0, &code);
    let mut t = map.transaction();
    t.add(&root, 0, &Region::ram("ram", ram), 0);
    t.add(&root, 0x80000, &region(&devices[0]), 0);
    t.add(&io, 0x1000, &region(&devices[1]), 0);
    t.commit();
    let spaces = VmSpaces {
        memory: map.create_space("memory", &root),
        ports: map.create_space("io", &io),
        clock: Clock::real(),
        ram: vec![],
    };
    spaces.clock.resume();
    let config = VmConfig {
        platform: Arc::new(EmptyBoard::default()),
        model: CpuModel::named("qemu64", &FeatureSet::available()).unwrap(),
        topology: Topology::default(),
        tsc_khz: engine.probe().unwrap().tsc_khz.unwrap_or(1_000_000),
        counted: false,
    };
    let vm = engine.create_vm(&spaces, &config).unwrap();
    let mut vcpu = vm.create_vcpu(0, CpuSignal::new()).unwrap();
    let mut state = CpuState::reset(0);
    (state.rip, state.seg[1].base, state.seg[1].selector) = (0, 0, 0);
    vcpu.set_state(&state).unwrap();
    vm.go(&mut [&mut *vcpu as &mut dyn Vcpu]);
    let end = Instant::now() + Duration::from_secs(20);
    while vcpu.run(Budget::Instructions(1_000_000)) != VcpuExit::Halted {
        assert!(Instant::now() < end, "{}: the guest does not come to its end", engine.name());
    }
    vm.stand(&mut [&mut *vcpu as &mut dyn Vcpu]);
    let count = |d: &Arc<Device>| (d.rung.load(Ordering::SeqCst), d.other.load(Ordering::SeqCst));
    (devices.iter().map(count).collect(), vcpu.exit_counts())
}

#[test]
fn a_device_cannot_tell_how_its_doorbell_is_rung() {
    let rings = u64::from(RINGS);
    let kvm = Kvm::default();
    let mut engines: Vec<&dyn Accelerator> = vec![&Interp];
    match kvm.kind() {
        Ok(_) => engines.push(&kvm),
        Err(why) => eprintln!("skipped: {why}"),
    }
    for engine in engines {
        let (counts, exits) = run(engine);
        assert_eq!(counts, [(rings, 0), (rings, 1)], "{}", engine.name());
        if engine.name() == "kvm"
            && kvm.capabilities().unwrap().iter().any(|(name, on)| name.contains("doorbell") && *on)
        {
            let left = |what: &str| exits.iter().find(|(name, _)| *name == what).map_or(0, |(_, n)| *n);
            assert!(left("io") + left("mmio") < 10, "the kernel did not collect them: {exits:?}");
        }
    }
}
