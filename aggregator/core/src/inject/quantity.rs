//! Kubernetes' quantities: `250m`, `64Mi`, `1.5`, `1e3`, exactly, in thousandths of thousandths of thousandths.
//!
//! Amounts of cpu are written in thousandths, as people do; amounts of memory in the largest binary unit that divides
//! them, which is the form that the API server keeps.

use std::{fmt, ops::Add};

const NANO: i128 = 1_000_000_000;
/// No amount of anything in a cluster comes near; beyond it sums could overflow.
const MAX: i128 = i128::MAX / 1_000_000;

/// An amount of something, never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    nano: i128,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nano: 0 };

    /// So many thousandths.
    #[must_use]
    pub const fn milli(thousandths: u32) -> Self {
        Self {
            nano: thousandths as i128 * (NANO / 1_000),
        }
    }

    /// So many times 2^20.
    #[must_use]
    pub const fn mebi(mebibytes: u32) -> Self {
        Self {
            nano: mebibytes as i128 * 1_024 * 1_024 * NANO,
        }
    }

    /// Reads `250m`, `64Mi`, `1.5`, `1e3`; `None` for anything else, and for what is negative.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('+').unwrap_or(text);
        let digits_end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits_end);
        let unit = unit(suffix)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let mut nano = digits(whole)?.checked_mul(unit)?;
        // What is smaller than can be said rounds up, as in Kubernetes.
        let mut place = unit;
        let mut rest = false;
        for digit in fraction.chars() {
            let digit = i128::from(digit.to_digit(10)?);
            rest |= digit > 0 && place % 10 != 0;
            nano = nano.checked_add(digit * place / 10)?;
            place /= 10;
        }
        nano += i128::from(rest);
        (nano <= MAX).then_some(Self { nano })
    }

    /// Whether it is nothing.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// How often `other` is in it, rounded up to the next thousandth: what a request must be for a limit and a ratio.
    #[must_use]
    pub fn divided_by(self, other: Self) -> Option<Self> {
        let scaled = self.nano.checked_mul(NANO)?;
        let quotient = scaled.checked_div(other.nano)?;
        let step = NANO / 1_000;
        Some(Self {
            nano: (quotient + step - 1) / step * step,
        })
    }

    /// As cpu: `250m`, `2`.
    #[must_use]
    pub fn cpu(self) -> String {
        let milli = NANO / 1_000;
        if self.nano % NANO == 0 {
            (self.nano / NANO).to_string()
        } else {
            format!("{}m", (self.nano + milli - 1) / milli)
        }
    }

    /// As memory: `64Mi`, `1500`.
    #[must_use]
    pub fn memory(self) -> String {
        let bytes = (self.nano + NANO - 1) / NANO;
        let units = ["Ei", "Pi", "Ti", "Gi", "Mi", "Ki"];
        for (index, unit) in units.iter().enumerate() {
            let size = 1_i128 << (10 * (units.len() - index));
            if bytes > 0 && bytes % size == 0 {
                return format!("{}{unit}", bytes / size);
            }
        }
        bytes.to_string()
    }
}

impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            nano: self.nano.saturating_add(other.nano),
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano >= 1_024 * 1_024 * NANO {
            f.write_str(&self.memory())
        } else {
            f.write_str(&self.cpu())
        }
    }
}

/// Digits alone, or nothing at all, which is zero.
fn digits(text: &str) -> Option<i128> {
    if text.is_empty() {
        return Some(0);
    }
    text.parse().ok()
}

/// How many billionths a unit is.
fn unit(suffix: &str) -> Option<i128> {
    let binary = |power: u32| Some(NANO << (10 * power));
    let decimal = |power: u32| NANO.checked_mul(10_i128.checked_pow(power)?);
    match suffix {
        "n" => Some(1),
        "u" => Some(1_000),
        "m" => Some(1_000_000),
        "" => Some(NANO),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            match u32::try_from(exponent) {
                Ok(power) => decimal(power),
                Err(_) => NANO
                    .checked_div(10_i128.checked_pow(exponent.unsigned_abs())?)
                    .filter(|unit| *unit > 0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, milli) in [
            ("0", Some(0)),
            ("250m", Some(250)),
            ("1", Some(1_000)),
            ("+1", Some(1_000)),
            ("0.5", Some(500)),
            (".5", Some(500)),
            ("1.", Some(1_000)),
            ("1e3", Some(1_000_000)),
            ("1E-3", Some(1)),
            ("2k", Some(2_000_000)),
            ("1Ki", Some(1_024_000)),
            ("1.5Ki", Some(1_536_000)),
            ("-1", None),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("m", None),
            ("1 Mi", None),
            ("1mi", None),
            ("1e99", None),
            ("99999999999999999999999999999999999999999", None),
            ("é", None),
        ] {
            let found = Quantity::parse(text).map(|quantity| quantity.nano);
            assert_eq!(found, milli.map(|milli: i128| milli * 1_000_000), "{text:?}");
        }
    }

    #[test]
    fn what_is_too_small_to_be_said_rounds_up() {
        assert_eq!(Quantity::parse("0.0000000001"), Quantity::parse("1n"));
        assert_eq!(Quantity::parse("0.1n"), Quantity::parse("1n"));
    }

    #[test]
    fn quantities_are_written_in_the_form_that_the_api_server_keeps() {
        for (text, cpu, memory) in [
            ("0", "0", "0"),
            ("5m", "5m", "1"),
            ("1500m", "1500m", "2"),
            ("2", "2", "2"),
            ("64Mi", "67108864", "64Mi"),
            ("1024Mi", "1073741824", "1Gi"),
            ("32M", "32000000", "31250Ki"),
            ("1001", "1001", "1001"),
        ] {
            let quantity = Quantity::parse(text).unwrap();
            assert_eq!(
                (quantity.cpu(), quantity.memory()),
                (cpu.into(), memory.into()),
                "{text}"
            );
        }
    }

    #[test]
    fn a_ratio_gives_the_smallest_request() {
        let limit = Quantity::parse("100m").unwrap();
        let ratio = Quantity::parse("3").unwrap();
        assert_eq!(limit.divided_by(ratio).unwrap().cpu(), "34m");
        assert_eq!(limit.divided_by(Quantity::ZERO), None);
    }
}
