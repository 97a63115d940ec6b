//! National Semiconductor PC16550D UART, datasheet of June 1995 (TL/C/8652).
//!
//! Bytes leave at once, as far as the back end takes them; the transmitter shows itself busy while it does not. A
//! received byte that waits in a FIFO below its trigger level raises the time-out interrupt after four
//! character times. With counted time the chip waits for its back end, so that a slow reader on the host cannot
//! be seen by the guest.

use std::collections::VecDeque;
use std::sync::Arc;

use anura_chardev::{CharBackend, CharEvent, CharFrontend};
use anura_memory::{Access, AccessRules, AddressSpace, MemoryMap, Region, cell_io};
use anura_vmcore::{
    Clock, Device, DeviceCell, IrqLine, LoadError, Record, ResetKind, Timer, TimerState, trace_event,
};

const FIFO: usize = 16;

const IER_RDA: u8 = 0x01;
const IER_THRE: u8 = 0x02;
const IER_RLS: u8 = 0x04;
const IER_MS: u8 = 0x08;

const IIR_NONE: u8 = 0x01;
const IIR_MS: u8 = 0x00;
const IIR_THRE: u8 = 0x02;
const IIR_RDA: u8 = 0x04;
const IIR_RLS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFO: u8 = 0xc0;

const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_RX: u8 = 0x02;
const FCR_CLEAR_TX: u8 = 0x04;

const LCR_BREAK: u8 = 0x40;
const LCR_DLAB: u8 = 0x80;

const MCR_DTR: u8 = 0x01;
const MCR_RTS: u8 = 0x02;
const MCR_OUT1: u8 = 0x04;
const MCR_OUT2: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;

const LSR_DR: u8 = 0x01;
const LSR_OE: u8 = 0x02;
const LSR_BI: u8 = 0x10;
const LSR_ERRORS: u8 = 0x1e;
const LSR_THRE: u8 = 0x20;
const LSR_TEMT: u8 = 0x40;
const LSR_FIFO_ERROR: u8 = 0x80;

const MSR_CTS: u8 = 0x10;
const MSR_DSR: u8 = 0x20;
const MSR_RI: u8 = 0x40;
const MSR_DCD: u8 = 0x80;
/// What a plugged-in null modem shows.
const MSR_CONNECTED: u8 = MSR_CTS | MSR_DSR | MSR_DCD;

/// Received bytes with the error bits that belong to each.
type Received = (u8, u8);

/// One serial port.
pub struct Uart16550 {
    // Wiring.
    name: &'static str,
    irq: IrqLine,
    clock: Clock,
    backend: CharBackend,
    timeout: Timer,
    // State.
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scr: u8,
    divisor: u16,
    /// Error bits of the line status that are cleared by reading it.
    errors: u8,
    rx: VecDeque<Received>,
    /// Bytes that the back end has not taken yet.
    tx: VecDeque<u8>,
    thre_pending: bool,
    timeout_pending: bool,
}

impl Uart16550 {
    /// A port with this back end; input reaches it through `connect_input`.
    pub fn new(name: &'static str, irq: IrqLine, clock: &Clock, backend: CharBackend) -> DeviceCell<Self> {
        let cell = DeviceCell::new_cyclic(|me| Self {
            name,
            irq,
            clock: clock.clone(),
            backend,
            timeout: clock.timer(me, |uart: &mut Self, _| uart.character_timeout()),
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: MCR_OUT2,
            msr: MSR_CONNECTED,
            scr: 0,
            divisor: 12,
            errors: 0,
            rx: VecDeque::new(),
            tx: VecDeque::new(),
            thre_pending: false,
            timeout_pending: false,
        });
        cell.lock().reset(ResetKind::PowerOn);
        cell
    }

    /// Maps the eight registers at `base`.
    pub fn map(cell: &DeviceCell<Self>, map: &MemoryMap, ports: &AddressSpace, base: u16) {
        let handler = cell_io(cell, Self::read, Self::write);
        map.transaction().add(
            ports.root(),
            u64::from(base),
            &Region::io("serial", 8, handler, AccessRules::BYTES),
            0,
        );
    }

    /// Lets the back end's input reach the port.
    pub fn connect_input(cell: &DeviceCell<Self>) {
        cell.lock().backend.clone().set_frontend(Arc::new(UartInput(cell.clone())));
    }

    fn fifos(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn rx_capacity(&self) -> usize {
        if self.fifos() { FIFO } else { 1 }
    }

    fn trigger(&self) -> usize {
        match (self.fifos(), self.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// Nanoseconds that one character takes on the line.
    fn character_time(&self) -> u64 {
        let bits =
            1 + 5 + u64::from(self.lcr & 3) + u64::from(self.lcr >> 3 & 1) + 1 + u64::from(self.lcr >> 2 & 1);
        // 16 clocks of 1.8432 MHz, times the divisor, per bit.
        let divisor = u64::from(self.divisor.max(1));
        bits * divisor * 16 * 1_000_000_000 / 1_843_200
    }

    fn lsr(&self) -> u8 {
        let mut lsr = self.errors;
        if !self.rx.is_empty() {
            lsr |= LSR_DR;
        }
        if let Some((_, error)) = self.rx.front() {
            lsr |= error;
        }
        if self.fifos() && self.rx.iter().any(|(_, error)| *error != 0) {
            lsr |= LSR_FIFO_ERROR;
        }
        if self.tx.is_empty() {
            lsr |= LSR_THRE | LSR_TEMT;
        }
        lsr
    }

    /// The pending interrupt of highest priority.
    fn iir(&self) -> u8 {
        let line_status = self.errors | self.rx.front().map_or(0, |(_, error)| *error);
        if self.ier & IER_RLS != 0 && line_status & LSR_ERRORS != 0 {
            IIR_RLS
        } else if self.ier & IER_RDA != 0 && self.timeout_pending {
            IIR_TIMEOUT
        } else if self.ier & IER_RDA != 0 && self.rx.len() >= self.trigger() {
            IIR_RDA
        } else if self.ier & IER_THRE != 0 && self.thre_pending {
            IIR_THRE
        } else if self.ier & IER_MS != 0 && self.modem_status() & 0x0f != 0 {
            IIR_MS
        } else {
            IIR_NONE
        }
    }

    fn update_irq(&self) {
        // OUT2 gates the interrupt onto the bus, as all PC boards are wired; in loop-back the pin is held active.
        let gated = self.mcr & (MCR_OUT2 | MCR_LOOP) != 0;
        self.irq.set(gated && self.iir() != IIR_NONE);
    }

    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return self.msr;
        }
        let wire = |out: u8, input: u8| if self.mcr & out != 0 { input } else { 0 };
        self.msr & 0x0f
            | wire(MCR_RTS, MSR_CTS)
            | wire(MCR_DTR, MSR_DSR)
            | wire(MCR_OUT1, MSR_RI)
            | wire(MCR_OUT2, MSR_DCD)
    }

    /// Notes which modem lines changed from `old`.
    fn modem_changed(&mut self, old: u8) {
        let new = self.modem_status();
        let mut delta = (old ^ new) >> 4 & 0x0b;
        // The ring indicator counts on its trailing edge only.
        if old & MSR_RI != 0 && new & MSR_RI == 0 {
            delta |= 0x04;
        }
        self.msr |= delta;
    }

    fn rx_restart_timeout(&mut self) {
        self.timeout_pending = false;
        if self.fifos() && !self.rx.is_empty() {
            self.timeout.arm(self.clock.now().saturating_add(4 * self.character_time()));
        } else {
            self.timeout.cancel();
        }
    }

    fn character_timeout(&mut self) {
        if !self.rx.is_empty() {
            self.timeout_pending = true;
            self.update_irq();
        }
    }

    fn take(&mut self, byte: u8, errors: u8) {
        if self.rx.len() >= self.rx_capacity() {
            self.errors |= LSR_OE;
            // Without FIFOs the new character overwrites the old one; with them it is lost.
            if !self.fifos() {
                self.rx.clear();
                self.rx.push_back((byte, errors));
            }
        } else {
            self.rx.push_back((byte, errors));
        }
        self.rx_restart_timeout();
        self.update_irq();
    }

    fn transmit(&mut self, byte: u8) {
        self.thre_pending = false;
        if self.mcr & MCR_LOOP != 0 {
            self.take(byte, 0);
            self.thre_pending = true;
        } else if self.clock.is_counted() {
            self.backend.write_all(&[byte]);
            self.thre_pending = true;
        } else {
            if self.tx.len() < FIFO {
                self.tx.push_back(byte);
            }
            self.flush();
        }
        self.update_irq();
    }

    /// Sends what waits; when all is gone the transmitter is empty again.
    fn flush(&mut self) {
        while let Some(byte) = self.tx.front().copied() {
            if self.backend.write(&[byte]) == 0 {
                return;
            }
            self.tx.pop_front();
        }
        self.thre_pending = true;
    }

    /// Reads a register.
    pub fn read(&mut self, a: Access) -> u64 {
        let value = match (a.offset & 7, self.lcr & LCR_DLAB != 0) {
            (0, true) => self.divisor as u8,
            (1, true) => (self.divisor >> 8) as u8,
            (0, false) => {
                let byte = self.rx.pop_front().map_or(0, |(byte, _)| byte);
                self.rx_restart_timeout();
                byte
            }
            (1, false) => self.ier,
            (2, _) => {
                let iir = self.iir();
                if iir == IIR_THRE {
                    self.thre_pending = false;
                }
                iir | if self.fifos() { IIR_FIFO } else { 0 }
            }
            (3, _) => self.lcr,
            (4, _) => self.mcr,
            (5, _) => {
                let lsr = self.lsr();
                self.errors = 0;
                if let Some((_, error)) = self.rx.front_mut() {
                    *error = 0;
                }
                lsr
            }
            (6, _) => {
                let msr = self.modem_status();
                self.msr &= 0xf0;
                msr
            }
            _ => self.scr,
        };
        trace_event!(serial_read, "{} offset {} value {value:#04x}", self.name, a.offset);
        self.update_irq();
        u64::from(value)
    }

    /// Writes a register.
    pub fn write(&mut self, a: Access, value: u64) {
        let value = value as u8;
        trace_event!(serial_write, "{} offset {} value {value:#04x}", self.name, a.offset);
        match (a.offset & 7, self.lcr & LCR_DLAB != 0) {
            (0, true) => self.divisor = self.divisor & 0xff00 | u16::from(value),
            (1, true) => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            (0, false) => self.transmit(value),
            (1, false) => {
                let enabled = value & !self.ier & IER_THRE != 0;
                self.ier = value & 0x0f;
                // Enabling the interrupt with an empty transmitter raises it ("Interrupt Enable Register").
                if enabled && self.tx.is_empty() {
                    self.thre_pending = true;
                }
            }
            (2, _) => self.write_fcr(value),
            (3, _) => {
                if (self.lcr ^ value) & value & LCR_BREAK != 0 && self.mcr & MCR_LOOP != 0 {
                    self.take(0, LSR_BI);
                }
                self.lcr = value;
            }
            (4, _) => {
                let old = self.modem_status();
                self.mcr = value & 0x1f;
                self.modem_changed(old);
            }
            // The line and modem status registers are written by factory tests only.
            (5 | 6, _) => {}
            _ => self.scr = value,
        }
        self.update_irq();
    }

    fn write_fcr(&mut self, value: u8) {
        let switched = (self.fcr ^ value) & FCR_ENABLE != 0;
        if switched || value & FCR_ENABLE != 0 && value & FCR_CLEAR_RX != 0 {
            self.rx.clear();
            self.rx_restart_timeout();
        }
        if switched || value & FCR_ENABLE != 0 && value & FCR_CLEAR_TX != 0 {
            self.tx.clear();
            self.thre_pending = true;
        }
        // The other bits count only together with the enable bit.
        self.fcr = if value & FCR_ENABLE != 0 { value & 0xc9 } else { 0 };
    }
}

impl Device for Uart16550 {
    fn reset(&mut self, _kind: ResetKind) {
        let Self {
            name: _,
            irq: _,
            clock: _,
            backend: _,
            timeout,
            ier,
            fcr,
            lcr,
            mcr,
            msr,
            scr,
            divisor,
            errors,
            rx,
            tx,
            thre_pending,
            timeout_pending,
        } = self;
        (*ier, *fcr, *lcr, *mcr, *scr, *divisor) = (0, 0, 0, MCR_OUT2, 0, 12);
        (*msr, *errors) = (MSR_CONNECTED, 0);
        rx.clear();
        tx.clear();
        (*thre_pending, *timeout_pending) = (false, false);
        timeout.cancel();
        self.update_irq();
    }

    fn start(&mut self) {
        if !self.tx.is_empty() {
            self.flush();
        }
        self.update_irq();
    }

    fn save(&self) -> Record {
        let Self {
            name: _,
            irq,
            clock: _,
            backend: _,
            timeout,
            ier,
            fcr,
            lcr,
            mcr,
            msr,
            scr,
            divisor,
            errors,
            rx,
            tx,
            thre_pending,
            timeout_pending,
        } = self;
        Record::new(1)
            .with(1, [*ier, *fcr, *lcr, *mcr, *msr, *scr, *errors])
            .with(2, *divisor)
            .with(3, rx.clone())
            .with(4, tx.clone())
            .with(5, [*thre_pending, *timeout_pending])
            .with(6, timeout.state())
            .with(7, irq.level())
    }

    fn load(&mut self, from: &Record) -> Result<(), LoadError> {
        let mut r = from.read(1)?;
        let [ier, fcr, lcr, mcr, msr, scr, errors] = r.get::<[u8; 7]>(1)?;
        let divisor = r.get(2)?;
        let rx = r.get_if::<VecDeque<Received>>(3, |rx| rx.len() <= FIFO)?;
        let tx = r.get_if::<VecDeque<u8>>(4, |tx| tx.len() <= FIFO)?;
        let [thre_pending, timeout_pending] = r.get(5)?;
        let timeout = r.get::<TimerState>(6)?;
        let irq = r.get(7)?;
        r.finish()?;
        (self.ier, self.fcr, self.lcr, self.mcr) = (ier & 0x0f, fcr & 0xc9, lcr, mcr & 0x1f);
        (self.msr, self.scr, self.errors) = (msr, scr, errors & LSR_ERRORS);
        (self.divisor, self.rx, self.tx) = (divisor, rx, tx);
        (self.thre_pending, self.timeout_pending) = (thre_pending, timeout_pending);
        self.timeout.restore(timeout);
        self.irq.restore(irq);
        Ok(())
    }
}

/// The port as its chardev sees it.
struct UartInput(DeviceCell<Uart16550>);

impl CharFrontend for UartInput {
    fn can_receive(&self) -> usize {
        let uart = self.0.lock();
        if uart.mcr & MCR_LOOP != 0 { 0 } else { uart.rx_capacity().saturating_sub(uart.rx.len()) }
    }

    fn receive(&self, bytes: &[u8]) {
        let mut uart = self.0.lock();
        bytes.iter().for_each(|byte| uart.take(*byte, 0));
    }

    fn event(&self, event: CharEvent) {
        if event == CharEvent::Break {
            self.0.lock().take(0, LSR_BI);
        }
    }

    fn writable(&self) {
        let mut uart = self.0.lock();
        if !uart.tx.is_empty() {
            uart.flush();
            uart.update_irq();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anura_chardev::{Chardev, ChardevConfig, ChardevKind, OpenOptions};
    use anura_vmcore::{LineLevels, Requester, Width};

    struct Rig {
        clock: Clock,
        sink: Arc<LineLevels>,
        uart: DeviceCell<Uart16550>,
        host: Chardev,
    }

    fn rig() -> Rig {
        let (clock, sink) = (Clock::stepped(), LineLevels::new());
        let config = ChardevConfig::new("ring", ChardevKind::Ringbuf { size: 256 });
        let host = Chardev::open(&config, &OpenOptions::default()).unwrap();
        let uart = Uart16550::new("serial0", sink.line(4), &clock, host.claim().unwrap());
        Rig { clock, sink, uart, host }
    }

    impl Rig {
        fn set(&self, register: u64, value: u8) {
            let a = Access { offset: register, width: Width::W1, from: Requester::Cpu(0) };
            self.uart.lock().write(a, u64::from(value));
        }
        fn get(&self, register: u64) -> u8 {
            self.uart.lock().read(Access { offset: register, width: Width::W1, from: Requester::Cpu(0) })
                as u8
        }
        fn send(&self, bytes: &[u8]) {
            UartInput(self.uart.clone()).receive(bytes);
        }
        fn irq(&self) -> bool {
            self.sink.level(4)
        }
    }

    #[test]
    fn bytes_written_reach_the_back_end_and_the_transmitter_is_empty_again() {
        let rig = rig();
        for byte in b"hello" {
            rig.set(0, *byte);
            assert_eq!(rig.get(5), LSR_THRE | LSR_TEMT);
        }
        assert_eq!(rig.host.ring_read(16).unwrap(), b"hello");
    }

    #[test]
    fn enabling_the_transmit_interrupt_raises_it_and_reading_iir_clears_it() {
        let rig = rig();
        rig.set(1, IER_THRE);
        assert!(rig.irq());
        assert_eq!(rig.get(2), IIR_THRE);
        assert!(!rig.irq());
        rig.set(0, b'x');
        assert!(rig.irq());
        rig.set(1, 0);
        assert!(!rig.irq());
        rig.set(1, IER_THRE);
        assert!(rig.irq());
    }

    #[test]
    fn a_received_byte_interrupts_and_reading_it_ends_that() {
        let rig = rig();
        rig.set(1, IER_RDA);
        rig.send(b"a");
        assert_eq!((rig.irq(), rig.get(2), rig.get(5) & LSR_DR), (true, IIR_RDA, LSR_DR));
        assert_eq!(rig.get(0), b'a');
        assert_eq!((rig.irq(), rig.get(5) & LSR_DR), (false, 0));
    }

    #[test]
    fn fifos_interrupt_at_their_trigger_level_or_by_time_out() {
        let rig = rig();
        rig.set(2, FCR_ENABLE | 0x40);
        rig.set(1, IER_RDA);
        rig.send(b"abc");
        assert!(!rig.irq());
        rig.clock.advance(10_000_000);
        assert_eq!(rig.get(2), IIR_TIMEOUT | IIR_FIFO);
        assert_eq!(rig.get(0), b'a');
        assert_eq!(rig.get(2), IIR_NONE | IIR_FIFO, "a read restarts the time-out");
        rig.send(b"de");
        assert_eq!(rig.get(2), IIR_RDA | IIR_FIFO);
    }

    #[test]
    fn an_overrun_is_told_once_and_a_full_fifo_takes_no_more() {
        let rig = rig();
        rig.set(2, FCR_ENABLE);
        rig.set(1, IER_RLS);
        rig.send(&[7; 17]);
        assert_eq!(rig.get(2), IIR_RLS | IIR_FIFO);
        assert_eq!(rig.get(5) & LSR_OE, LSR_OE);
        assert_eq!(rig.get(5) & LSR_OE, 0);
        assert_eq!(UartInput(rig.uart.clone()).can_receive(), 0);
        rig.set(2, FCR_ENABLE | FCR_CLEAR_RX);
        assert_eq!(rig.get(5) & LSR_DR, 0);
        assert_eq!(UartInput(rig.uart.clone()).can_receive(), 16);
    }

    #[test]
    fn loop_back_returns_bytes_and_modem_lines() {
        let rig = rig();
        rig.set(4, MCR_LOOP | MCR_RTS | MCR_OUT2);
        rig.set(0, 0x5a);
        assert_eq!(rig.get(0), 0x5a);
        assert_eq!(rig.get(6) & 0xf0, MSR_CTS | MSR_DCD);
        rig.set(4, MCR_LOOP | MCR_DTR | MCR_OUT1);
        assert_eq!(rig.get(6), MSR_DSR | MSR_RI | 0x0b);
        assert_eq!(rig.get(6) & 0x0f, 0, "reading clears the deltas");
        rig.set(4, MCR_LOOP);
        assert_eq!(rig.get(6) & 0x04, 0x04, "the ring indicator's trailing edge");
        assert!(rig.host.ring_read(16).unwrap().is_empty());
    }

    #[test]
    fn a_break_comes_as_a_zero_byte_with_its_error() {
        let rig = rig();
        rig.set(1, IER_RLS);
        UartInput(rig.uart.clone()).event(CharEvent::Break);
        assert_eq!(rig.get(2), IIR_RLS);
        assert_eq!(rig.get(5) & (LSR_BI | LSR_DR), LSR_BI | LSR_DR);
        assert_eq!(rig.get(2), IIR_NONE);
        assert_eq!(rig.get(0), 0);
    }

    #[test]
    fn the_divisor_is_behind_the_access_bit_and_the_scratch_register_keeps() {
        let rig = rig();
        rig.set(3, LCR_DLAB | 3);
        rig.set(0, 0x34);
        rig.set(1, 0x12);
        assert_eq!((rig.get(0), rig.get(1)), (0x34, 0x12));
        rig.set(3, 3);
        assert_eq!((rig.get(1), rig.get(3), rig.get(4)), (0, 3, MCR_OUT2));
        rig.set(7, 0xa5);
        assert_eq!(rig.get(7), 0xa5);
    }

    #[test]
    fn out2_gates_the_interrupt() {
        let rig = rig();
        rig.set(4, 0);
        rig.set(1, IER_THRE);
        assert!(!rig.irq());
        rig.set(4, MCR_OUT2);
        assert!(rig.irq());
    }

    #[test]
    fn a_saved_port_loads() {
        let rig = rig();
        rig.set(2, FCR_ENABLE | 0x80);
        rig.set(1, 0x0f);
        rig.send(b"xyz");
        let record = rig.uart.lock().save();
        let copy = super::tests::rig();
        copy.uart.lock().load(&record).unwrap();
        assert_eq!(copy.uart.lock().save(), record);
        assert_eq!(copy.get(0), b'x');
    }
}
