//! Resource quantities (`k8s.io/apimachinery/pkg/api/resource`): a decimal number with an optional
//! binary (`Ki` … `Ei`) or decimal (`n` … `E`) suffix or exponent.
//!
//! Values are exact integers of nano-units in 128 bits: enough for everything from `1n` to 10^29
//! with room for sums. Finer fractions round up, and binary quantities end at 2^63-1 units, as in Kubernetes.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;

/// How a quantity likes to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `1Ki`, `512Mi`
    BinarySi,
    /// `100m`, `2k`
    DecimalSi,
    /// `1e3`
    DecimalExponent,
}

/// A parsed quantity. Equality and order are by value, not by format.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Kubernetes' own message for text that is not a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
    #[error("quantity is too large: at most about 10^29 units are representable")]
    TooLarge,
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: i128::from(units) * NANO, format }
    }

    pub fn from_milli(milli: i64, format: Format) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format }
    }

    /// Whole units, rounded up (bytes, counts).
    pub fn units(&self) -> i64 {
        clamp(ceil_div(self.nanos, NANO))
    }

    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// Thousandths, rounded up (millicores).
    pub fn milli(&self) -> i64 {
        clamp(ceil_div(self.nanos, NANO / 1000))
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether the value is a whole number of units.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }

    fn preferred(self, other: Quantity) -> Format {
        if self.is_zero() { other.format } else { self.format }
    }
}

/// Sums beyond what a quantity can hold stay at the limit.
impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_add(other.nanos), format: self.preferred(other) }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_sub(other.nanos), format: self.preferred(other) }
    }
}

fn clamp(value: i128) -> i64 {
    // The clamp makes the conversion exact.
    value.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

fn ceil_div(value: i128, by: i128) -> i128 {
    // Kubernetes rounds away from zero.
    let quotient = value / by;
    match value % by {
        0 => quotient,
        rest if rest > 0 => quotient + 1,
        _ => quotient - 1,
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let Parts { negative, whole, fraction, scale, format } = Parts::of(text)?;
        let mut nanos = scaled(whole, fraction, scale)?;
        if format == Format::BinarySi && !negative {
            nanos = nanos.min(i128::from(i64::MAX) * NANO);
        }
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// A quantity as it is written.
pub struct Parts<'a> {
    pub negative: bool,
    /// Digits before and after the point: one at least.
    pub whole: &'a str,
    pub fraction: &'a str,
    pub scale: Scale,
    pub format: Format,
}

impl<'a> Parts<'a> {
    pub fn of(text: &'a str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        let (scale, format) = parse_suffix(suffix)?;
        Ok(Self { negative, whole, fraction, scale, format })
    }
}

/// What one unit of the number is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// 10^n
    Ten(i32),
    /// 2^n
    Two(u32),
}

fn parse_suffix(suffix: &str) -> Result<(Scale, Format), QuantityError> {
    let decimal = |power| Ok((Scale::Ten(power), Format::DecimalSi));
    let binary = |power| Ok((Scale::Two(power), Format::BinarySi));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => match suffix.strip_prefix(['e', 'E']) {
            Some(exponent) => {
                let power: i32 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
                Ok((Scale::Ten(power), Format::DecimalExponent))
            }
            None if suffix.chars().all(|c| "eEinumkKMGTP+-0123456789".contains(c)) => Err(QuantityError::Suffix),
            None => Err(QuantityError::Format),
        },
    }
}

/// `whole.fraction × scale` in nano-units, rounded up.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> Result<i128, QuantityError> {
    let digits: String = [whole, fraction].concat();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    if digits.len() > 37 {
        return Err(QuantityError::TooLarge);
    }
    // At most 37 digits fit in 128 bits.
    let mantissa: i128 = digits.parse().map_err(|_| QuantityError::Format)?;
    let decimals = i32::try_from(fraction.len()).map_err(|_| QuantityError::TooLarge)?;
    match scale {
        Scale::Ten(power) => shift_ten(mantissa, power.saturating_add(9).saturating_sub(decimals)),
        Scale::Two(power) => {
            let value = mantissa.checked_mul(1 << power).ok_or(QuantityError::TooLarge)?;
            shift_ten(value, 9 - decimals)
        }
    }
}

fn shift_ten(value: i128, power: i32) -> Result<i128, QuantityError> {
    if power >= 0 {
        let factor = 10_i128.checked_pow(power.unsigned_abs()).ok_or(QuantityError::TooLarge)?;
        value.checked_mul(factor).ok_or(QuantityError::TooLarge)
    } else {
        Ok(match 10_i128.checked_pow(power.unsigned_abs()) {
            Some(divisor) => ceil_div(value, divisor),
            None => 1,
        })
    }
}

/// The canonical form: no fraction, the largest suffix that keeps the value whole.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BINARY: [(&str, u32); 6] = [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
        const DECIMAL: [(&str, i32); 10] =
            [("E", 18), ("P", 15), ("T", 12), ("G", 9), ("M", 6), ("k", 3), ("", 0), ("m", -3), ("u", -6), ("n", -9)];
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let units = self.nanos / NANO;
        // Below 1024 binary quantities are written as decimal ones, as Kubernetes does.
        if self.format == Format::BinarySi && self.is_integer() && units.abs() >= 1024 {
            for (suffix, power) in BINARY {
                if units % (1 << power) == 0 {
                    return write!(f, "{}{suffix}", units >> power);
                }
            }
            return write!(f, "{units}");
        }
        for (suffix, power) in DECIMAL {
            let worth = 10_i128.pow((power + 9).unsigned_abs());
            if self.nanos % worth == 0 {
                let count = self.nanos / worth;
                return match (self.format, power) {
                    (Format::DecimalExponent, 0) | (_, 0) => write!(f, "{count}"),
                    (Format::DecimalExponent, _) => write!(f, "{count}e{power}"),
                    _ => write!(f, "{count}{suffix}"),
                };
            }
        }
        // Unreachable: every value is a whole number of nano-units.
        write!(f, "{}n", self.nanos)
    }
}

impl From<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> for Quantity {
    /// Stored quantities were validated; text that is none counts as zero.
    fn from(text: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Self {
        text.0.parse().unwrap_or(Quantity::ZERO)
    }
}

impl From<Quantity> for k8s_openapi::apimachinery::pkg::api::resource::Quantity {
    fn from(quantity: Quantity) -> Self {
        Self(quantity.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("0", "0"),
            ("0.0", "0"),
            ("1", "1"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1536Mi", "1536Mi"),
            ("0.5", "500m"),
            ("0.5Gi", "512Mi"),
            ("1.5Gi", "1536Mi"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("2.5", "2500m"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("1E", "1E"),
            ("1Ei", "1Ei"),
            // As much as 64 bits hold, where they are binary.
            ("8Ei", "9223372036854775807"),
            ("100Ei", "9223372036854775807"),
            ("100E", "100E"),
            ("99999999999999999999", "99999999999999999999"),
            ("-5", "-5"),
            ("+5", "5"),
            (".5", "500m"),
            ("5.", "5"),
            ("100Ki", "100Ki"),
            ("1Ki", "1Ki"),
            ("0.1n", "1n"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("64Mi", "64Mi"),
            ("1234567890", "1234567890"),
            ("3000000", "3M"),
            ("1e-3", "1e-3"),
            ("0.001Ki", "1024m"),
        ] {
            let parsed: Quantity = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(parsed.to_string(), canonical, "{text}");
            assert_eq!(canonical.parse::<Quantity>().unwrap(), parsed, "{text} round trip");
        }
    }

    #[test]
    fn text_that_is_no_quantity() {
        for (text, error) in [
            ("", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1.2.3", QuantityError::Format),
            (".", QuantityError::Format),
            ("1KiB", QuantityError::Format),
            ("1ki", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1 Gi", QuantityError::Format),
            ("1e30", QuantityError::TooLarge),
        ] {
            assert_eq!(text.parse::<Quantity>().map(|q| q.to_string()), Err(error), "{text}");
        }
    }

    #[test]
    fn rounding_is_up() {
        let tiny: Quantity = "1u".parse().unwrap();
        assert_eq!((tiny.units(), tiny.milli()), (1, 1));
        let third: Quantity = "0.3335".parse().unwrap();
        assert_eq!(third.milli(), 334);
    }

    #[test]
    fn sums_keep_the_format() {
        let sum = "1Gi".parse::<Quantity>().unwrap().add("512Mi".parse().unwrap());
        assert_eq!(sum.to_string(), "1536Mi");
        assert!("1Gi".parse::<Quantity>().unwrap() > "1G".parse::<Quantity>().unwrap());
    }
}
