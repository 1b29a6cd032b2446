//! Quantities as values of expressions: exact whatever their size, where those of objects end at
//! 2^63-1 units.

use api::quantity::{Format, Parts, Quantity, QuantityError, Scale};
use cel::Value;
use cel::objects::Opaque;
use num_bigint::BigInt;
use num_bigint::Sign::{Minus, NoSign, Plus};

use crate::library::{Outcome, failed, known, opaque_type};

const NANO: u32 = 1_000_000_000;
/// Digits before the point, at most: an exponent could ask for any number of them.
const MOST_DIGITS: u32 = 1000;

/// `kubernetes.Quantity`: nano-units.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Amount(BigInt);
opaque_type!(Amount, "kubernetes.Quantity");

impl Amount {
    pub(crate) fn parse(text: &str) -> Outcome<Self> {
        let parsed = match text.parse::<Quantity>() {
            Ok(quantity) => Ok(Self(quantity.nanos().into())),
            Err(QuantityError::TooLarge) => large(text),
            Err(error) => Err(error),
        };
        parsed.map_err(|error| failed("quantity", error))
    }

    fn of_units(units: i64) -> Self {
        Self(BigInt::from(units) * NANO)
    }

    /// Whole units, if it is a whole number of them, and not too many.
    fn units(&self) -> Option<i64> {
        let units = &self.0 / NANO;
        (&units * NANO == self.0).then(|| i64::try_from(units).ok()).flatten()
    }

    pub(crate) fn is_integer(&self) -> bool {
        self.units().is_some()
    }

    pub(crate) fn sign(&self) -> i64 {
        match self.0.sign() {
            Minus => -1,
            NoSign => 0,
            Plus => 1,
        }
    }

    /// The nearest double: what the text of its value reads as.
    pub(crate) fn approximate(&self) -> f64 {
        format!("{}e-9", self.0).parse().unwrap_or(f64::NAN)
    }

    pub(crate) fn plus(&self, other: &Self) -> Self {
        Self(&self.0 + &other.0)
    }

    pub(crate) fn minus(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }
}

/// A quantity of more than 2^63-1 units. Those with a binary suffix end there, upstream too.
fn large(text: &str) -> Result<Amount, QuantityError> {
    let Parts { negative, whole, fraction, scale, format } = Parts::of(text)?;
    let digits = [whole, fraction].concat();
    let decimals = u32::try_from(fraction.len()).map_err(|_| QuantityError::TooLarge)?;
    if decimals.max(u32::try_from(digits.len()).unwrap_or(u32::MAX)) > MOST_DIGITS {
        return Err(QuantityError::TooLarge);
    }
    let mantissa: BigInt = digits.parse().map_err(|_| QuantityError::Format)?;
    let (value, power) = match scale {
        Scale::Two(power) => (mantissa << power, 0),
        Scale::Ten(power) => (mantissa, power),
    };
    let power = i64::from(power) + 9 - i64::from(decimals);
    let factor =
        u32::try_from(power.abs()).ok().filter(|power| *power <= MOST_DIGITS).ok_or(QuantityError::TooLarge)?;
    let factor = BigInt::from(10).pow(factor);
    let nanos = if power >= 0 {
        value * factor
    } else {
        // Away from zero, as Kubernetes rounds.
        (value + &factor - 1) / factor
    };
    let most = BigInt::from(i64::MAX) * NANO;
    let nanos = if negative {
        -nanos
    } else if format == Format::BinarySi && nanos > most {
        most
    } else {
        nanos
    };
    Ok(Amount(nanos))
}

pub(crate) fn quantity_of(value: &Value) -> Outcome<&Amount> {
    known(value)
}

/// A quantity, or a whole number.
pub(crate) fn amount(value: &Value) -> Outcome<Amount> {
    match value {
        Value::Int(number) => Ok(Amount::of_units(*number)),
        other => quantity_of(other).cloned(),
    }
}

pub(crate) fn as_integer(value: &Value) -> Outcome<i64> {
    quantity_of(value)?.units().ok_or_else(|| failed("asInteger", "cannot convert value to integer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Amount {
        Amount::parse(text).unwrap()
    }

    #[test]
    fn quantities_are_exact_whatever_their_size() {
        let most = i64::MAX.to_string();
        let more = "9223372036854775808";
        assert!(parsed(&most).is_integer() && !parsed(more).is_integer());
        assert!(parsed(more) > parsed(&most));
        assert_eq!(parsed(more).minus(&parsed("1")), parsed(&most));
        assert_eq!(parsed(&most).plus(&Amount::of_units(1)), parsed(more));
        assert_eq!(parsed("1e30").minus(&parsed("1e30")).sign(), 0);
        assert_eq!(parsed("1e30").plus(&parsed("1n")).minus(&parsed("1e30")), parsed("1n"));
        assert_eq!(parsed("-1e30").sign(), -1);
        assert_eq!(parsed("1e30").approximate(), 1e30);
        assert_eq!(parsed("1500m").approximate(), 1.5);
        assert_eq!(parsed("100000000000000000000.00000000001"), parsed("100000000000000000000.000000001"));
    }

    #[test]
    fn binary_quantities_end_at_what_64_bits_hold() {
        let most = parsed(&i64::MAX.to_string());
        assert_eq!(parsed("8Ei"), most);
        assert_eq!(parsed("99999999999999999999999999999999999999Ei"), most);
        assert!(parsed("-9Ei") < parsed("-8Ei"));
    }

    #[test]
    fn exponents_have_bounds() {
        assert!(Amount::parse("1e900").is_ok());
        for text in ["1e2000", "1e2000000000", "1e-1x", "x", &"9".repeat(2000)] {
            assert!(Amount::parse(text).is_err(), "{text}");
        }
    }
}
