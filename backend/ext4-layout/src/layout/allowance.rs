//! How often a guest can make the layout be read again.
//!
//! Opening costs reads in proportion to the file system, and a hostile guest can ask for it with
//! one sector. So it is paid for: after a first stock, one opening for as many bytes written as
//! the last opening read.

/// Openings that are free of charge.
const STOCK: u32 = 64;

/// The account of one device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    openings: u32,
    written: u64,
    /// Bytes that the last opening read.
    price: u64,
    due: bool,
}

impl Default for Allowance {
    fn default() -> Self {
        Allowance { openings: STOCK, written: 0, price: 1, due: false }
    }
}

impl Allowance {
    /// Opening again is needed, now or as soon as it is paid for.
    pub(crate) fn ask(&mut self) {
        self.due = true;
    }

    /// The guest wrote; earns openings.
    pub(crate) fn earn(&mut self, bytes: u64) {
        self.written = self.written.saturating_add(bytes);
        while self.written >= self.price && self.openings < STOCK {
            self.written -= self.price;
            self.openings += 1;
        }
        self.written = self.written.min(self.price);
    }

    /// Whether an opening is due and paid for; takes it.
    pub(crate) fn take(&mut self) -> bool {
        let granted = self.due && self.openings > 0;
        if granted {
            self.due = false;
            self.openings -= 1;
        }
        granted
    }

    /// The layout was opened, by reading so many bytes.
    pub(crate) fn opened(&mut self, bytes_read: u64) {
        self.due = false;
        self.price = bytes_read.max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_are_paid_for_in_bytes_written() {
        let mut allowance = Allowance::default();
        allowance.opened(1000);
        assert!(!allowance.take());
        let mut free = 0;
        allowance.ask();
        while allowance.take() {
            free += 1;
            allowance.ask();
        }
        assert_eq!(free, STOCK);
        allowance.earn(999);
        assert!(!allowance.take());
        allowance.earn(1);
        assert!(allowance.take());
        assert!(!allowance.take(), "what was taken is no longer due");
    }
}
