//! Numbers as text.

use crate::rounds::Samples;

/// Formats a number with three digits.
pub fn short(number: f64) -> String {
    match number.abs() {
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// Formats a count with thousands separators.
pub fn thousands(count: usize) -> String {
    match count {
        1000.. => format!("{},{:03}", thousands(count / 1000), count % 1000),
        _ => count.to_string(),
    }
}

/// Formats the median of microseconds per call, in a suitable unit.
pub fn micros(samples: &Samples) -> String {
    match samples.median() {
        us @ 1e6.. => format!("{} s", short(us / 1e6)),
        us @ 1e3.. => format!("{} ms", short(us / 1e3)),
        us => format!("{} µs", short(us)),
    }
}
