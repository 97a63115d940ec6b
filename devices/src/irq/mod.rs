//! Interrupt controllers: the 8259A pair, the IOAPIC and the local APICs, and the wiring between them.

pub mod apic_bus;
pub mod fabric;
pub mod i8259;
pub mod ioapic82093;
pub mod lapic;
