//! Checks that the configurations of all daemons share, with the same messages.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;

use super::InvalidValue;

/// The message for a path that is not absolute.
pub const MUST_BE_ABSOLUTE: &str = "must be an absolute path, beginning with /";

/// Checks that a path is absolute, so that it does not depend on where the daemon is started.
///
/// # Errors
///
/// The key, if the path is relative.
pub fn absolute(key: &str, path: &Path) -> Result<(), InvalidValue> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(InvalidValue::new(key, MUST_BE_ABSOLUTE))
}

/// Checks that an address without authentication can only be reached from this host.
///
/// # Errors
///
/// The key, if the address is not on loopback.
pub fn loopback(key: &str, address: SocketAddr) -> Result<(), InvalidValue> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    let why = format!(
        "must be on loopback, such as \"127.0.0.1:9101\", not {address}: it has no authentication"
    );
    Err(InvalidValue::new(key, why))
}

/// Checks that a value is within a range. Value and bounds are shown in the key's own unit.
///
/// # Errors
///
/// The key, if the value is outside.
pub fn within<T: PartialOrd + Display + Copy>(
    key: &str,
    value: T,
    range: &RangeInclusive<T>,
) -> Result<(), InvalidValue> {
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = (range.start(), range.end());
    let why = format!("must be {low} to {high}, not {value}");
    Err(InvalidValue::new(key, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_names_its_key_and_what_to_write_instead() {
        assert_eq!(absolute("socket", Path::new("/run/x.sock")), Ok(()));
        let refused = absolute("socket", Path::new("x.sock")).unwrap_err();
        assert_eq!(refused, InvalidValue::new("socket", MUST_BE_ABSOLUTE));
        for good in ["127.0.0.1:1", "[::1]:1"] {
            assert_eq!(loopback("listen", good.parse().unwrap()), Ok(()));
        }
        for bad in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            let refused = loopback("listen", bad.parse().unwrap()).unwrap_err();
            assert!(refused.why.contains(bad), "{refused:?}");
        }
        assert_eq!(within("n", 1, &(1..=3)), Ok(()));
        assert_eq!(within("n", 3, &(1..=3)), Ok(()));
        let refused = within("n", 4, &(1..=3)).unwrap_err();
        assert_eq!(refused, InvalidValue::new("n", "must be 1 to 3, not 4"));
    }
}
