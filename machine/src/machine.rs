//! A machine: a board, its vCPUs, its run state and the main loop.
//!
//! The main loop owns descriptors and, in real time, device timers; vCPUs run on their own thread. What a device
//! asks for (reset, power-off) and what ends a vCPU's run comes to the loop as an event, and the vCPUs
//! stand until it is dealt with.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anura_accel::{Accelerator, Capabilities, CpuPlatform, Vcpu, VmConfig};
use anura_chardev::{Chardev, MuxCommand, OpenOptions};
use anura_vmcore::{Clock, MachineRequest, ResetKind, trace_event};
use anura_x86::{CpuModel, FeatureSet, Topology};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::config::{MachineConfig, PanicAction, RebootAction, RtcBase, ShutdownAction};
use crate::control::{ControlError, RunState};
use crate::cpus::{CpuEvent, Cpus, CpusConfig, Replacement};
use crate::error::MachineError;
use crate::firmware::Tables;
use crate::linux::{self, BootImage, BootRequest};
use crate::pc::{DEFAULT_ORDER, Pc, PcParts, TSC_KHZ};
use crate::platform::Platform;
use crate::roms::{self, Roms};

/// What saves a stopped machine; `cli` gives it, so that the machine knows no format.
pub type Migrator = dyn Fn(&Machine, &str) -> Result<(), String> + Send + Sync;

/// Finds an engine by its name; `cli` gives it, so that the machine knows none.
pub type Engines = dyn Fn(&str) -> Result<Box<dyn Accelerator>, String> + Send + Sync;

/// A whole machine. Clones are the same machine.
#[derive(Clone)]
pub struct Machine {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: MachineConfig,
    pub(crate) topology: Topology,
    pub(crate) pc: Pc,
    pub(crate) cpus: Cpus,
    pub(crate) platform: Arc<Platform>,
    /// Rate of the time stamp counter.
    pub(crate) tsc_khz: u64,
    pub(crate) model: CpuModel,
    pub(crate) state: Mutex<RunState>,
    pub(crate) chardevs: Vec<Chardev>,
    boot: Option<BootImage>,
    loop_: Arc<Loop>,
    pub(crate) migrator: OnceLock<Box<Migrator>>,
    /// The engine that runs the vCPUs.
    pub(crate) engine: Mutex<&'static str>,
    pub(crate) engines: OnceLock<Box<Engines>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.cpus.quit();
        self.pc.map.dismantle();
    }
}

/// What other threads reach of the main loop.
struct Loop {
    wake: OwnedFd,
    events: Mutex<VecDeque<CpuEvent>>,
    exit: Mutex<Option<i32>>,
    woken: AtomicBool,
}

impl Loop {
    fn new() -> Result<Arc<Self>, MachineError> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| MachineError::Host { what: "main loop: eventfd", source: e.into() })?;
        Ok(Arc::new(Self {
            wake,
            events: Mutex::default(),
            exit: Mutex::new(None),
            woken: AtomicBool::new(false),
        }))
    }

    fn wake(&self) {
        if !self.woken.swap(true, Ordering::SeqCst) {
            // The counter cannot overflow: it is drained each time it is seen.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    fn drain(&self) {
        // The flag first: who wakes us from here on writes to the descriptor again.
        self.woken.store(false, Ordering::SeqCst);
        let mut buf = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut buf);
    }

    fn exit(&self, code: i32) {
        self.exit.lock().get_or_insert(code);
        self.wake();
    }
}

fn rtc_base(base: RtcBase) -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0));
    match base {
        RtcBase::Seconds(seconds) => seconds,
        RtcBase::Utc => now,
        RtcBase::Localtime => now + crate::localtime::utc_offset(now),
    }
}

/// Entropy for the guest: the host's, or in counted time a pure function of `-seed`.
fn seed(config: &MachineConfig) -> [u8; 32] {
    let mut seed = [0; 32];
    if config.icount.is_some() || config.seed.is_some() {
        let mut x = u64::from(config.seed.unwrap_or(0)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        for chunk in seed.chunks_mut(8) {
            // splitmix64
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = x;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ z >> 31).to_le_bytes());
        }
        return seed;
    }
    if let Ok(mut file) = std::fs::File::open("/dev/urandom") {
        // A guest without entropy from us has other sources.
        let _ = std::io::Read::read_exact(&mut file, &mut seed);
    }
    seed
}

/// How the first processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// At the reset vector, in firmware.
    Firmware,
    /// In a kernel that the machine put into memory, with firmware's work done for it.
    Direct,
}

/// Decides how the machine starts, and reads its ROMs. Refuses what could only end in a guest that executes nothing
/// of use.
fn choose_start(config: &MachineConfig, long_mode: bool) -> Result<(Start, Roms), MachineError> {
    let boot = &config.boot;
    if let (Some(kernel), None, true) = (&boot.kernel, &boot.firmware, boot.flash.is_empty())
        && linux::starts_directly(kernel, long_mode)?
    {
        return Ok((Start::Direct, Roms::default()));
    }
    if config.board.name == "none" {
        return Ok((Start::Firmware, Roms::default()));
    }
    let roms = Roms::find(config)?;
    let runs = !config.start_paused && config.incoming.is_none();
    if roms.firmware.is_none() && roms.flash.is_empty() && (runs || boot.kernel.is_some()) {
        return Err(MachineError::Config(roms::missing(config)));
    }
    Ok((Start::Firmware, roms))
}

/// Whether an engine can give this rate of the time stamp counter.
fn check_tsc(capabilities: &Capabilities, khz: u64) -> Result<(), String> {
    match capabilities.tsc_khz {
        // Measured rates differ a little each time; KVM itself takes 250 in a million for equal.
        Some(own) if !capabilities.tsc_scales && own.abs_diff(khz) > own / 4000 => Err(format!(
            "its time stamp counter runs at {own} kHz, this machine's at {khz}; start the machine with \
             -cpu MODEL,tsc-frequency={own}000"
        )),
        _ => Ok(()),
    }
}

/// Bytes at the top of low RAM that hold tables for a direct boot.
const TABLES: u64 = 0x2_0000;

impl Machine {
    /// Builds the machine that `config` describes on this engine. The vCPUs stand until [`Machine::start`].
    pub fn new(config: MachineConfig, accel: &dyn Accelerator) -> Result<Self, MachineError> {
        let clock = match config.icount {
            Some(icount) => Clock::counted(icount.shift),
            None => Clock::real(),
        };
        Self::with_clock(config, accel, &clock)
    }

    /// As [`Machine::new`], with guest time from `clock`: tests move a stepped one themselves.
    pub fn with_clock(
        config: MachineConfig,
        accel: &dyn Accelerator,
        clock: &Clock,
    ) -> Result<Self, MachineError> {
        trace_event!(init_phase, "configuration");
        let capabilities =
            accel.probe().map_err(|e| MachineError::Config(format!("-accel {}: {e}", accel.name())))?;
        let offer = capabilities.features.unwrap_or_else(FeatureSet::available);
        let mut parsed = CpuModel::parse(&config.cpu, &offer).map_err(|e| {
            MachineError::Config(format!("-cpu {}: {e}; -cpu help lists the models", config.cpu))
        })?;
        for warning in &parsed.warnings {
            match capabilities.features {
                Some(_) => log::warn!("{}", warning.replace("TCG doesn't", "host doesn't")),
                None => log::warn!("{warning}"),
            }
        }
        let (start, roms) = choose_start(&config, parsed.model.has(anura_x86::Feature::Lm))?;
        let smp = config.smp;
        let topology = Topology { sockets: smp.sockets, cores: smp.cores * smp.dies, threads: smp.threads };
        if topology.threads > 1 {
            parsed.model.show_threads();
        }
        if smp.cpus == 0 || smp.cpus > capabilities.max_vcpus {
            return Err(MachineError::Config(format!(
                "-smp {}: the {} engine runs 1 to {} vCPUs",
                smp.cpus,
                accel.name(),
                capabilities.max_vcpus
            )));
        }
        let tsc_khz = match parsed.tsc_frequency {
            Some(hz) => {
                let khz = (hz / 1000).max(1);
                check_tsc(&capabilities, khz)
                    .map_err(|why| MachineError::Config(format!("-accel {}: {why}", accel.name())))?;
                khz
            }
            None => capabilities.tsc_khz.unwrap_or(TSC_KHZ),
        };
        let loop_ = Loop::new()?;
        let on_exit = loop_.clone();
        let options = OpenOptions {
            escape: config.escape_key,
            on_command: Arc::new(move |command| {
                if command == MuxCommand::Exit {
                    on_exit.exit(0);
                }
            }),
        };
        trace_event!(init_phase, "chardevs");
        let mut chardevs = Vec::new();
        for chardev in &config.chardevs {
            chardevs.push(Chardev::open(chardev, &options)?);
        }

        trace_event!(init_phase, "board");
        let pc = Pc::new(&PcParts {
            config: &config,
            model: &parsed.model,
            topology,
            clock: clock.clone(),
            tsc_khz,
            rtc_base: rtc_base(config.rtc.base),
            roms: &roms,
            chardev: &|id| chardevs.iter().find(|c| c.id() == id).cloned(),
        })?;

        trace_event!(init_phase, "vcpus");
        let platform = Platform::new(&pc.apics, pc.fabric.clone(), pc.math_error.clone());
        let vm_config = VmConfig {
            platform: platform.clone(),
            model: parsed.model.clone(),
            topology,
            tsc_khz,
            counted: clock.is_counted(),
        };
        let vm = accel.create_vm(&pc.spaces(), &vm_config)?;
        let vcpus = (0..smp.cpus)
            .map(|id| vm.create_vcpu(id, pc.signals[id as usize].clone()))
            .collect::<Result<Vec<Box<dyn Vcpu>>, _>>()?;
        let events = loop_.clone();
        let cpus = Cpus::new(CpusConfig {
            vcpus,
            vm,
            signals: pc.signals.clone(),
            clock: clock.clone(),
            sleep: config.icount.is_none_or(|icount| icount.sleep),
            requests: pc.requests.clone(),
            in_turn: capabilities.in_turn || clock.is_counted(),
            engine: accel.name().to_uppercase(),
            on_event: Box::new(move |event| {
                events.events.lock().push_back(event);
                events.wake();
            }),
        })
        .map_err(|source| MachineError::Host { what: "vCPU thread", source })?;
        let signals = pc.signals.clone();
        pc.requests.set_hook(move || signals.iter().for_each(|s| s.raise(anura_vmcore::CpuSignal::KICK)));
        if !clock.is_counted() {
            let waker = loop_.clone();
            clock.on_earlier(move || waker.wake());
        }

        trace_event!(init_phase, "firmware");
        let reserved = TABLES.min(pc.ram.below_4g / 2);
        let e820 = pc.e820(reserved);
        let tables = Tables::new(&pc, &config, topology, start == Start::Firmware)?;
        trace_event!(init_phase, "boot");
        let boot = match &config.boot.kernel {
            Some(kernel) if start == Start::Direct => {
                let low_ram_end = pc.ram.below_4g - reserved;
                let mut image = linux::prepare(&BootRequest {
                    kernel,
                    initrd: config.boot.initrd.as_deref(),
                    command_line: &config.boot.append,
                    low_ram_end,
                    map: &e820,
                    rsdp: tables.rsdp(),
                    seed: seed(&config),
                    text_screen: pc.vga.is_some(),
                })?;
                image.pieces.extend(tables.pieces(low_ram_end));
                Some(image)
            }
            _ => None,
        };
        let state = if config.incoming.is_some() { RunState::Inmigrate } else { RunState::Prelaunch };
        let machine = Self {
            inner: Arc::new(Inner {
                config,
                topology,
                pc,
                cpus,
                platform,
                tsc_khz: vm_config.tsc_khz,
                model: vm_config.model,
                state: Mutex::new(state),
                chardevs,
                boot,
                loop_,
                migrator: OnceLock::new(),
                engine: Mutex::new(accel.name()),
                engines: OnceLock::new(),
            }),
        };
        for chardev in &machine.inner.chardevs {
            let waker = machine.inner.loop_.clone();
            chardev.set_waker(Arc::new(move || waker.wake()));
            if let Some(notice) = chardev.notice() {
                eprintln!("{notice}");
            }
            chardev.wait_ready()?;
        }
        machine.reset_all(ResetKind::PowerOn)?;
        Ok(machine)
    }

    /// The chardev of this id.
    pub fn chardev(&self, id: &str) -> Option<Chardev> {
        self.inner.chardevs.iter().find(|c| c.id() == id).cloned()
    }

    /// The board.
    pub fn pc(&self) -> &Pc {
        &self.inner.pc
    }

    /// The configuration that the machine was built from.
    pub fn config(&self) -> &MachineConfig {
        &self.inner.config
    }

    /// Says how a stopped machine is saved; once.
    pub fn set_migrator(&self, migrator: Box<Migrator>) {
        let _ = self.inner.migrator.set(migrator);
    }

    /// Says how engines are found by name; once.
    pub fn set_engines(&self, engines: Box<Engines>) {
        let _ = self.inner.engines.set(engines);
    }

    /// Lets another engine run the vCPUs from here on; the guest does not notice. If it cannot, the old one goes on.
    pub fn switch_engine(&self, accel: &dyn Accelerator) -> Result<(), MachineError> {
        let inner = &self.inner;
        let name = accel.name();
        let refuse = |why: String| MachineError::Config(format!("accel {name}: {why}"));
        let capabilities = accel.probe().map_err(|e| refuse(e.to_string()))?;
        let counted = inner.pc.clock.is_counted();
        let count = inner.config.smp.cpus;
        if counted && !capabilities.exact_budgets {
            return Err(refuse("it has no counted time (-icount)".into()));
        }
        if count > capabilities.max_vcpus {
            return Err(refuse(format!("it runs 1 to {} vCPUs", capabilities.max_vcpus)));
        }
        check_tsc(&capabilities, inner.tsc_khz).map_err(refuse)?;
        let offer = capabilities.features.unwrap_or_else(FeatureSet::available);
        let lacking: Vec<_> =
            inner.model.features.iter().filter(|f| !offer.has(*f)).map(|f| f.name()).collect();
        if !lacking.is_empty() {
            return Err(refuse(format!("the guest's processor has what it lacks: {}", lacking.join(", "))));
        }
        let config = VmConfig {
            platform: inner.platform.clone(),
            model: inner.model.clone(),
            topology: inner.topology,
            tsc_khz: inner.tsc_khz,
            counted,
        };
        inner.cpus.replace(|turns| {
            turns.vm().sync_dirty();
            let states: Vec<_> = turns.vcpus().map(|vcpu| vcpu.state()).collect();
            let vm = accel.create_vm(&inner.pc.spaces(), &config)?;
            let mut vcpus = Vec::new();
            for (id, state) in states.iter().enumerate() {
                let mut vcpu = vm.create_vcpu(id as u32, inner.pc.signals[id].clone())?;
                vcpu.set_state(state).map_err(|e| refuse(e.to_string()))?;
                vcpus.push(vcpu);
            }
            let in_turn = capabilities.in_turn || counted;
            Ok::<_, MachineError>(Replacement { vm, vcpus, in_turn, engine: name.to_uppercase() })
        })?;
        *inner.engine.lock() = name;
        Ok(())
    }

    /// Resets every device and vCPU and puts the boot image in place again.
    fn reset_all(&self, kind: ResetKind) -> Result<(), MachineError> {
        let inner = &self.inner;
        trace_event!(system_reset, "{kind:?}");
        inner.cpus.pause(|turns| {
            for (_, device) in inner.pc.devices() {
                device.reset(kind);
            }
            // Requests of the time before the reset are void.
            while inner.pc.requests.take().is_some() {}
            inner.platform.set_a20(true);
            (0..turns.len()).for_each(|cpu| inner.platform.keep_msrs(cpu as u32, Vec::new()));
            turns.restart();
            for vcpu in turns.vcpus() {
                vcpu.reset(kind);
            }
            if kind == ResetKind::System && inner.config.boot.once.is_some() {
                // `-boot once=` has had its turn.
                inner.pc.set_boot_order(inner.config.boot.order.as_deref().unwrap_or(DEFAULT_ORDER));
            }
            let Some(boot) = &inner.boot else { return Ok(()) };
            crate::firmware::post(&inner.pc);
            if matches!(boot.entry, linux::Entry::Multiboot { .. }) {
                crate::firmware::post_legacy(&inner.pc);
            }
            for piece in &boot.pieces {
                piece.each(|address, bytes| {
                    let from = anura_vmcore::Requester::Monitor;
                    match inner.pc.memory.write_bytes(address, bytes, from).is_ok() {
                        true => Ok(()),
                        false => Err(MachineError::Config(format!(
                            "-kernel: {:#x} bytes at {address:#x} do not fit in guest memory; give the machine \
                             more with -m",
                            bytes.len(),
                        ))),
                    }
                })?;
            }
            for (n, vcpu) in turns.vcpus().enumerate() {
                let mut state = vcpu.state();
                crate::firmware::set_up_cpu(&inner.pc, &mut state);
                if n == 0 {
                    boot.set_up(&mut state);
                }
                vcpu.set_state(&state).map_err(|e| MachineError::Config(format!("-kernel: {e}")))?;
            }
            Ok(())
        })
    }

    /// The run state.
    pub fn run_state(&self) -> RunState {
        *self.inner.state.lock()
    }

    pub(crate) fn set_run_state(&self, new: RunState) {
        let old = std::mem::replace(&mut *self.inner.state.lock(), new);
        trace_event!(runstate_set, "{} -> {}", old.name(), new.name());
    }

    /// Lets the machine run.
    pub fn start(&self) {
        let inner = &self.inner;
        if self.run_state() == RunState::Running {
            return;
        }
        self.set_run_state(RunState::Running);
        inner.pc.clock.resume();
        for (_, device) in inner.pc.devices() {
            device.start();
        }
        // The empty machine has no processors that could run.
        if inner.config.board.name != "none" {
            inner.cpus.set_running(true);
        }
        inner.loop_.wake();
    }

    /// A saved state was loaded: the machine runs on, or waits for `cont`.
    pub fn incoming_done(&self, run: bool) {
        self.set_run_state(RunState::Paused);
        if run {
            self.start();
        }
    }

    /// Lets go of all chardevs: output is sent, the terminal restored, sockets removed.
    pub fn close(&self) {
        self.inner.chardevs.iter().for_each(Chardev::close);
    }

    /// Makes the machine stand, in this state.
    pub fn stop_in(&self, state: RunState) {
        let inner = &self.inner;
        let was = self.run_state();
        if was == RunState::Running {
            inner.cpus.set_running(false);
            for (_, device) in inner.pc.devices() {
                device.stop();
            }
            inner.pc.clock.pause();
        }
        self.set_run_state(state);
    }

    /// Ends the main loop with this exit code.
    pub fn exit(&self, code: i32) {
        self.inner.loop_.exit(code);
    }

    /// Resets as the reset button does; with `-no-reboot` the emulator ends instead.
    pub(crate) fn reset(&self, by_guest: bool) -> Result<(), ControlError> {
        if by_guest && self.inner.config.actions.reboot == RebootAction::Shutdown {
            self.shut_down();
            return Ok(());
        }
        self.reset_all(ResetKind::System).map_err(|e| ControlError(e.to_string()))?;
        if self.run_state() == RunState::InternalError || self.run_state() == RunState::GuestPanicked {
            self.set_run_state(RunState::Paused);
        }
        Ok(())
    }

    fn shut_down(&self) {
        match self.inner.config.actions.shutdown {
            ShutdownAction::Poweroff => self.exit(0),
            ShutdownAction::Pause => self.stop_in(RunState::Shutdown),
        }
    }

    fn handle_requests(&self) {
        while let Some(request) = self.inner.pc.requests.take() {
            match request {
                MachineRequest::Reset(_) => {
                    if let Err(error) = self.reset(true) {
                        log::error!("reset: {error}");
                        self.stop_in(RunState::InternalError);
                    }
                }
                MachineRequest::PowerOff => self.shut_down(),
                MachineRequest::Suspend => self.stop_in(RunState::Suspended),
                MachineRequest::A20(open) => {
                    let platform = &self.inner.platform;
                    // The vCPUs look at the gate when they start again.
                    self.inner.cpus.pause(|_| platform.set_a20(open));
                }
                MachineRequest::Nmi => self.inner.pc.apic_bus.nmi_all(),
                MachineRequest::Smi => {}
                MachineRequest::Panicked(_) => match self.inner.config.actions.panic {
                    PanicAction::None => {}
                    PanicAction::Pause => self.stop_in(RunState::GuestPanicked),
                    PanicAction::Shutdown => self.exit(0),
                    PanicAction::ExitFailure => self.exit(1),
                },
                MachineRequest::Exit(code) => self.exit(code),
            }
        }
    }

    fn handle_event(&self, event: CpuEvent) {
        match event {
            CpuEvent::Request => {}
            CpuEvent::TripleFault(_) | CpuEvent::Reset(_) => {
                if let Err(error) = self.reset(true) {
                    log::error!("reset: {error}");
                    self.stop_in(RunState::InternalError);
                }
            }
            CpuEvent::Failed(cpu, error) => {
                eprintln!("anura: vCPU {cpu}: {error}");
                if let Ok(text) = self.dump_cpu(cpu) {
                    eprintln!("{text}");
                }
                self.stop_in(RunState::InternalError);
                if self.inner.config.exit_on_failure {
                    self.exit(1);
                }
            }
            CpuEvent::Debug(_) => self.stop_in(RunState::Debug),
        }
        self.handle_requests();
        self.inner.cpus.release();
    }

    /// Runs until something ends the emulator; the exit code.
    pub fn run(&self) -> i32 {
        crate::cpus::exact_timeouts();
        loop {
            if let Some(code) = self.turn(None) {
                self.stop_in(RunState::Shutdown);
                for chardev in &self.inner.chardevs {
                    chardev.drain(Duration::from_millis(500));
                }
                return code;
            }
        }
    }

    /// One turn of the main loop, waiting at most `limit`; the exit code if the emulator is to end.
    pub fn turn(&self, limit: Option<Duration>) -> Option<i32> {
        let inner = &self.inner;
        let real = !inner.pc.clock.is_counted() && self.run_state() == RunState::Running;
        if real {
            inner.pc.clock.fire_due();
        }
        loop {
            let event = inner.loop_.events.lock().pop_front();
            let Some(event) = event else { break };
            self.handle_event(event);
        }
        if self.run_state() != RunState::Running && inner.pc.requests.pending() {
            self.handle_requests();
        }
        if let Some(code) = *inner.loop_.exit.lock() {
            return Some(code);
        }
        let deadline = inner.pc.clock.look_at().filter(|_| real && self.run_state() == RunState::Running);
        let until = deadline.map(|at| Duration::from_nanos(at.saturating_sub(inner.pc.clock.now())));
        let retry = inner.chardevs.iter().filter_map(Chardev::timeout).min();
        let timeout = [until, retry, limit].into_iter().flatten().min();
        self.wait(timeout);
        None
    }

    fn wait(&self, timeout: Option<Duration>) {
        let inner = &self.inner;
        let interests: Vec<_> = inner.chardevs.iter().flat_map(Chardev::interests).collect();
        let mut fds = vec![PollFd::new(&inner.loop_.wake, PollFlags::IN)];
        for interest in &interests {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, interest.read);
            flags.set(PollFlags::OUT, interest.write);
            fds.push(PollFd::from_borrowed_fd(interest.fd.as_fd(), flags));
        }
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let ready = rustix::event::poll(&mut fds, timeout.as_ref()).unwrap_or(0);
        let woken = fds[0].revents().contains(PollFlags::IN);
        drop(fds);
        if woken {
            inner.loop_.drain();
        }
        // A wake-up may mean that a chardev's waiting output or a reconnection is due.
        if ready > usize::from(woken) || !interests.is_empty() || timeout.is_some() {
            inner.chardevs.iter().for_each(Chardev::dispatch);
        }
    }
}
