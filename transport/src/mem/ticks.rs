//! The processor's own clock, for measuring what is shorter than a look at the system's.

/// A count that grows at a constant rate on all cores (the time-stamp counter). Its unit is the processor's: divide by
/// what it grew over a known time.
///
/// Under user-mode Linux reading the system's clock is a system call that takes many microseconds; this takes a few
/// nanoseconds everywhere.
#[cfg(target_arch = "x86_64")]
pub fn ticks() -> u64 {
    // SAFETY: RDTSC reads a register and touches no memory; every x86-64 processor has it, and Linux lets user space
    // use it unless a process asked otherwise for itself (prctl PR_SET_TSC).
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Elsewhere: nanoseconds of the system's monotonic clock.
#[cfg(not(target_arch = "x86_64"))]
pub fn ticks() -> u64 {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #[test]
    fn ticks_grow() {
        let before = super::ticks();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(super::ticks() > before);
    }
}
