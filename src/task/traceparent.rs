//! The `traceparent` of a request: the position of the request in a distributed trace (W3C Trace Context).

/// Returns whether the text is a `traceparent` of version 00, as in
/// `00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01`: the id of the trace, the id of the parent span, and flags.
pub(crate) fn is_valid(text: &str) -> bool {
    let mut fields = text.split('-');
    let mut next = |digits: usize| fields.next().filter(|field| is_hex(field, digits));
    let (version, trace, parent, flags) = (next(2), next(32), next(16), next(2));
    version == Some("00")
        && trace.is_some_and(is_id)
        && parent.is_some_and(is_id)
        && flags.is_some()
        && fields.next().is_none()
}

fn is_hex(field: &str, digits: usize) -> bool {
    field.len() == digits && field.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// An id that is all zeros is invalid.
fn is_id(field: &str) -> bool {
    field.bytes().any(|digit| digit != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_has_a_version_two_ids_that_are_not_zero_and_flags() {
        let valid = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
        assert!(is_valid(valid));
        for invalid in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-1",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01-",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01-more",
            "01-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
            "00-0AF7651916CD43DD8448EB211C80319C-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-c00f067aa0ba902b7-01",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-0\n",
        ] {
            assert!(!is_valid(invalid), "{invalid:?}");
        }
    }
}
