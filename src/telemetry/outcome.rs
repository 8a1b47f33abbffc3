//! How a call of an engine ended.

use crate::backend::StorageError;

/// How a call of an engine ended, as the label `outcome` and the traces name it.
#[derive(Clone, Copy)]
pub(crate) enum Outcome {
    Ok,
    Conflict,
    NotFound,
    Full,
    TooLarge,
    Corrupt,
    Denied,
    TooFewReplicas,
    Unavailable,
    Error,
    /// The caller has given up.
    #[cfg(feature = "metrics")]
    Abandoned,
}

impl Outcome {
    #[cfg(feature = "metrics")]
    pub(super) const ALL: [Self; 11] = [
        Self::Ok,
        Self::Conflict,
        Self::NotFound,
        Self::Full,
        Self::TooLarge,
        Self::Corrupt,
        Self::Denied,
        Self::TooFewReplicas,
        Self::Unavailable,
        Self::Error,
        Self::Abandoned,
    ];

    pub(crate) fn of<T>(answer: &Result<T, StorageError>) -> Self {
        let Err(error) = answer else { return Self::Ok };
        match error {
            StorageError::VersionConflict { .. } => Self::Conflict,
            StorageError::NotFound { .. } => Self::NotFound,
            StorageError::CapacityExceeded { .. } => Self::Full,
            StorageError::TooLarge { .. } => Self::TooLarge,
            StorageError::Corrupt { .. } => Self::Corrupt,
            StorageError::Denied { .. } => Self::Denied,
            StorageError::TooFewReplicas { .. } => Self::TooFewReplicas,
            StorageError::Unavailable { .. } => Self::Unavailable,
            _ => Self::Error,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Conflict => "conflict",
            Self::NotFound => "not_found",
            Self::Full => "full",
            Self::TooLarge => "too_large",
            Self::Corrupt => "corrupt",
            Self::Denied => "denied",
            Self::TooFewReplicas => "too_few_replicas",
            Self::Unavailable => "unavailable",
            Self::Error => "error",
            #[cfg(feature = "metrics")]
            Self::Abandoned => "abandoned",
        }
    }
}
