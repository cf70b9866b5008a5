//! A memory-mapped 16550 serial port whose output is the console. It never receives anything and
//! raises no interrupt.
//!
//! One extension: a wide write to the transmitter prints each of its bytes that is not zero, so
//! that a line takes a few exits instead of one per byte.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::console::Console;

/// Line status: the transmitter is always empty.
const LINE_STATUS: u8 = 0x60;
/// Modem status: a receiver is connected.
const MODEM_STATUS: u8 = 0xb0;
/// Interrupt identification: none pending.
const NO_INTERRUPT: u8 = 0x01;
/// Line control: the first two registers are the divisor.
const DIVISOR_LATCH: u8 = 0x80;

/// The registers, which are all of the port's state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Serial {
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor_low: u8,
    divisor_high: u8,
}

impl Serial {
    pub(super) fn write(&mut self, register: u64, bytes: &[u8], console: &mut Console) {
        let latched = self.line_control & DIVISOR_LATCH != 0;
        let value = bytes.first().copied().unwrap_or(0);
        match register {
            0 if latched => self.divisor_low = value,
            0 => bytes
                .split(|&byte| byte == 0)
                .for_each(|text| console.print(text)),
            1 if latched => self.divisor_high = value,
            1 => self.interrupt_enable = value & 0xf,
            2 => self.fifo_control = value,
            3 => self.line_control = value,
            4 => self.modem_control = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
    }

    pub(super) const fn read(&self, register: u64) -> u8 {
        let latched = self.line_control & DIVISOR_LATCH != 0;
        match register {
            0 if latched => self.divisor_low,
            1 if latched => self.divisor_high,
            1 => self.interrupt_enable,
            2 => NO_INTERRUPT,
            3 => self.line_control,
            4 => self.modem_control,
            5 => LINE_STATUS,
            6 => MODEM_STATUS,
            7 => self.scratch,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_to_the_console_unless_the_divisor_is_set() {
        let folder = tempfile::tempdir().unwrap();
        let mut console = Console::open(&folder.path().join("console.log")).unwrap();
        let mut serial = Serial::default();
        serial.write(3, &[0x80], &mut console);
        serial.write(0, &[1], &mut console);
        serial.write(3, &[3], &mut console);
        serial.write(0, b"\0\0x", &mut console);
        serial.write(7, &[0x5a], &mut console);
        assert_eq!(console.unfinished(), b"x");
        assert_eq!((serial.read(3), serial.read(5)), (3, LINE_STATUS));
        let moved = Serial::read_from_bytes(serial.as_bytes()).unwrap();
        assert_eq!(moved, serial);
        assert_eq!((moved.read(7), moved.read(0)), (0x5a, 0));
    }
}
