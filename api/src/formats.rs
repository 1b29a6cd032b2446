//! Formats of strings that are checked (`k8s.io/kube-openapi/pkg/validation/strfmt`); others are
//! taken as they come.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::names;
use crate::scalar::{base64, go_duration, timestamp, to_base64};

pub fn fits(format: &str, text: &str) -> bool {
    let hex = |groups: &[usize], text: &str| {
        let parts: Vec<&str> = text.split('-').collect();
        parts.len() == groups.len()
            && parts.iter().zip(groups).all(|(p, n)| p.len() == *n && p.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    match format {
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(ip, length)| {
            let most = match ip.parse() {
                Ok(IpAddr::V4(_)) => 32,
                Ok(IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            length.parse::<u8>().is_ok_and(|length| length <= most)
        }),
        "mac" => {
            let separator = if text.contains('-') { '-' } else { ':' };
            let parts: Vec<&str> = text.split(separator).collect();
            matches!(parts.len(), 6 | 8 | 20)
                && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
        }
        "uuid" | "uuid3" | "uuid4" | "uuid5" => {
            hex(&[8, 4, 4, 4, 12], text) || (text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()))
        }
        "date-time" => timestamp(text).is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10,
        "duration" => go_duration(text).is_ok(),
        "byte" => base64(text).is_ok_and(|bytes| to_base64(&bytes) == text),
        "email" => {
            text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty() && !text.contains(' '))
        }
        "uri" => {
            text.split_once(':').is_some_and(|(scheme, _)| {
                scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                    && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
            }) || text.starts_with('/')
        }
        "hostname" => {
            let label = |label: &str| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            };
            !text.is_empty() && text.len() <= 255 && text.trim_end_matches('.').split('.').all(label)
        }
        "hexcolor" => {
            let digits = text.trim_start_matches('#');
            matches!(digits.len(), 3 | 6) && digits.bytes().all(|b| b.is_ascii_hexdigit())
        }
        "k8s-short-name" => names::dns1123_label(text).is_empty(),
        "k8s-long-name" => names::dns1123_subdomain(text).is_empty(),
        _ => true,
    }
}

/// Whether a number is of a format, as far as it is bounded by one.
pub fn holds(format: &str, number: f64) -> bool {
    match format {
        "int32" => (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&number),
        "float" => (number as f32).is_finite(),
        _ => true,
    }
}
