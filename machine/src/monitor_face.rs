//! What the monitor sees of a machine: the implementation of [`MachineControl`].

use std::sync::Arc;

use anura_accel::CpuPlatform;
use anura_memory::{AddressSpace, MemoryMap, RamBlock};
use anura_x86::CpuState;

use crate::control::{BusNode, ControlError, CpuInfo, MachineCheck, MachineControl, RunState};
use crate::machine::Machine;

impl Machine {
    fn check_cpu(&self, cpu: u32) -> Result<(), ControlError> {
        let cpus = self.inner.config.smp.cpus;
        if cpu < cpus {
            Ok(())
        } else {
            Err(ControlError(format!("CPU {cpu}: the machine has CPUs 0 to {}", cpus - 1)))
        }
    }

    /// Registers, segments and the bytes at the instruction pointer of a vCPU.
    pub(crate) fn dump_cpu(&self, cpu: u32) -> Result<String, ControlError> {
        let state = self.cpu_state(cpu)?;
        let mut text = state.to_string();
        let rip = state.seg[1].base.wrapping_add(state.rip);
        let mut bytes = [0; 16];
        if let Some(at) = self.translate(cpu, rip)
            && self.inner.pc.memory.read_bytes(at, &mut bytes, anura_vmcore::Requester::Monitor).is_ok()
        {
            let code: Vec<_> = bytes.iter().map(|b| format!("{b:02x}")).collect();
            text.push_str(&format!("\nCode={}", code.join(" ")));
        }
        Ok(text)
    }
}

impl MachineControl for Machine {
    fn run_state(&self) -> RunState {
        Machine::run_state(self)
    }

    fn stop(&self) -> Result<(), ControlError> {
        if self.run_state() == RunState::Running {
            self.stop_in(RunState::Paused);
        }
        Ok(())
    }

    fn cont(&self) -> Result<(), ControlError> {
        match Machine::run_state(self) {
            RunState::Inmigrate => Err(ControlError("the machine waits for an incoming state".into())),
            RunState::Shutdown | RunState::InternalError | RunState::GuestPanicked => {
                Err(ControlError("Resetting the Virtual Machine is required".into()))
            }
            _ => {
                self.start();
                Ok(())
            }
        }
    }

    fn system_reset(&self) -> Result<(), ControlError> {
        let was = Machine::run_state(self);
        self.reset(false)?;
        if was == RunState::Shutdown {
            self.set_run_state(RunState::Paused);
        }
        Ok(())
    }

    fn system_powerdown(&self) -> Result<(), ControlError> {
        self.inner.pc.pm.lock().power_button();
        Ok(())
    }

    fn quit(&self) {
        self.exit(0);
    }

    fn key(&self, key: u16, down: bool) -> Result<(), ControlError> {
        let keyboard = self.inner.pc.keyboard.as_ref();
        let keyboard = keyboard.ok_or_else(|| ControlError("the machine has no keyboard".into()))?;
        keyboard.lock().key(key, down);
        Ok(())
    }

    fn nmi(&self) -> Result<(), ControlError> {
        self.inner.pc.apic_bus.nmi_all();
        Ok(())
    }

    fn mce(&self, check: &MachineCheck) -> Result<(), ControlError> {
        self.check_cpu(check.cpu)?;
        self.inner.cpus.pause(|turns| -> Result<(), ControlError> {
            for (n, vcpu) in turns.vcpus().enumerate() {
                let named = n == check.cpu as usize;
                if !named && !check.broadcast {
                    continue;
                }
                let mut state = vcpu.state();
                crate::mce::inject(&mut state, check, named)?;
                vcpu.set_state(&state).map_err(|e| ControlError(e.to_string()))?;
            }
            Ok(())
        })?;
        // Halted CPUs look for it.
        self.inner.pc.signals.iter().for_each(|s| s.raise(anura_vmcore::CpuSignal::IRQ));
        Ok(())
    }

    fn migrate(&self, uri: &str) -> Result<(), ControlError> {
        let migrator =
            self.inner.migrator.get().ok_or_else(|| ControlError("saving is not available".into()))?;
        if Machine::run_state(self) == RunState::Running {
            self.stop_in(RunState::SaveVm);
        }
        migrator(self, uri).map_err(ControlError)?;
        self.set_run_state(RunState::Postmigrate);
        Ok(())
    }

    fn engine(&self) -> String {
        (*self.inner.engine.lock()).to_owned()
    }

    fn switch_engine(&self, name: &str) -> Result<(), ControlError> {
        let find =
            self.inner.engines.get().ok_or_else(|| ControlError("this machine keeps its engine".into()))?;
        let engine = find(name).map_err(ControlError)?;
        Machine::switch_engine(self, &*engine).map_err(|e| ControlError(e.to_string()))
    }

    fn name(&self) -> Option<String> {
        self.inner.config.name.guest.clone()
    }

    fn uuid(&self) -> Option<String> {
        self.inner.config.uuid.clone()
    }

    fn cpus(&self) -> Vec<CpuInfo> {
        let topology = self.inner.topology;
        self.inner.cpus.pause(|turns| {
            (0..turns.len())
                .map(|n| CpuInfo {
                    index: n as u32,
                    apic_id: topology.apic_id(n as u32),
                    halted: turns.halted(n),
                    thread_id: self.inner.cpus.thread_id(n),
                })
                .collect()
        })
    }

    fn cpu_state(&self, cpu: u32) -> Result<CpuState, ControlError> {
        self.check_cpu(cpu)?;
        let state = self.inner.cpus.pause(|turns| turns.vcpu(cpu as usize).map(|v| v.state()));
        state.ok_or_else(|| ControlError(format!("CPU {cpu} is not there")))
    }

    fn a20(&self) -> bool {
        CpuPlatform::a20(&*self.inner.platform)
    }

    fn translate(&self, cpu: u32, va: u64) -> Option<u64> {
        self.check_cpu(cpu).ok()?;
        self.inner.cpus.pause(|turns| turns.vcpu(cpu as usize)?.translate(va))
    }

    fn memory_map(&self) -> MemoryMap {
        self.inner.pc.map.clone()
    }

    fn memory(&self) -> AddressSpace {
        self.inner.pc.memory.clone()
    }

    fn ports(&self) -> AddressSpace {
        self.inner.pc.ports.clone()
    }

    fn ram_blocks(&self) -> Vec<Arc<RamBlock>> {
        self.inner.pc.blocks.clone()
    }

    fn device_tree(&self) -> BusNode {
        crate::qtree::tree(&self.inner.pc)
    }

    fn pic_text(&self) -> String {
        self.inner.pc.fabric.describe_pic()
    }

    fn lapic_text(&self, cpu: u32) -> Result<String, ControlError> {
        self.check_cpu(cpu)?;
        // While the vCPUs run, the host may keep the registers.
        Ok(self.inner.cpus.pause(|_| self.inner.pc.apics[cpu as usize].describe()))
    }

    fn ioapic_text(&self) -> String {
        self.inner.pc.fabric.describe_ioapic()
    }

    fn irq_text(&self) -> String {
        self.inner.pc.fabric.describe_irq()
    }

    fn exits_text(&self) -> String {
        self.inner.cpus.pause(|turns| {
            let mut text = String::new();
            for (n, vcpu) in turns.vcpus().enumerate() {
                text.push_str(&format!("CPU {n}: {} instructions\n", vcpu.instructions()));
                for (cause, count) in vcpu.exit_counts() {
                    text.push_str(&format!("  {cause}: {count}\n"));
                }
            }
            text.push_str(&turns.vm().info());
            text
        })
    }

    fn jit_text(&self) -> String {
        // An engine tells its numbers when its vCPUs stand.
        let text = self.inner.cpus.pause(|turns| turns.vm().info());
        if text.is_empty() { "the engine translates nothing\n".into() } else { text }
    }

    fn state_hash_text(&self) -> Result<String, ControlError> {
        let hash = self.state_hash()?;
        Ok(format!(
            "instructions {}\ncpus    {}\ndevices {}\nram     {}\nstate   {}\n",
            hash.instructions, hash.cpus, hash.devices, hash.ram, hash.whole
        ))
    }

    fn chardevs(&self) -> Vec<(String, String)> {
        self.inner.chardevs.iter().map(|c| (c.id().to_owned(), c.filename())).collect()
    }

    fn set_log(&self, items: &str) -> Result<(), ControlError> {
        // An engine looks at the items when it begins to run.
        self.inner.cpus.pause(|_| crate::logging::set_items(items)).map_err(ControlError)
    }
}
