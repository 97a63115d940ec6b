//! What the user may choose of this engine.

/// What the stepper is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stepping {
    /// What the kernel fails to emulate; on hosts that emulate ring 0, guest kernels (ring 0 with paging) altogether.
    #[default]
    Kernels,
    /// What the kernel fails to emulate, and nothing else.
    Failures,
    /// Nothing: a failed emulation stops the machine.
    Off,
}

/// What the user may choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// What the stepper is used for.
    pub stepping: Stepping,
    /// Where the local APICs are.
    pub irqchip: Irqchip,
}

/// Where the local APICs are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Irqchip {
    /// In the kernel where guest kernels run in hardware and the kernel can, ours elsewhere.
    #[default]
    Auto,
    /// In the kernel.
    Split,
    /// Ours.
    Off,
}
