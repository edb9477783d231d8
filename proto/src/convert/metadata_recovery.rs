//! What verifications have found, and what jobs have fallen back to, as the log holds it.

use weir_coordination::metadata::{Fallback, PassedOver};
use weir_types::ids::Attempt;
use weir_types::snapshot::{Verification, Verifier};
use weir_types::time::Millis;

use crate::pb::metadata::v1 as pb;

impl From<Verifier> for pb::Verifier {
    fn from(by: Verifier) -> Self {
        match by {
            Verifier::Request => Self::Request,
            Verifier::Restore => Self::Restore,
        }
    }
}

impl From<pb::Verifier> for Verifier {
    fn from(by: pb::Verifier) -> Self {
        match by {
            pb::Verifier::Request => Self::Request,
            pb::Verifier::Restore => Self::Restore,
        }
    }
}

impl From<&Verification> for pb::Verification {
    fn from(verification: &Verification) -> Self {
        let Verification { at, by, findings, damage } = verification;
        Self {
            at_ms: at.0,
            damage: damage.as_ref().map(Into::into),
            by: pb::Verifier::from(*by).into(),
            findings: *findings,
        }
    }
}

impl From<pb::Verification> for Verification {
    fn from(verification: pb::Verification) -> Self {
        let by = verification.by().into();
        let pb::Verification { at_ms, damage, by: _, findings } = verification;
        Self { at: Millis(at_ms), by, findings, damage: damage.map(Into::into) }
    }
}

impl From<&PassedOver> for pb::PassedOver {
    fn from(passed: &PassedOver) -> Self {
        let PassedOver { snapshot, reason } = passed.clone();
        Self { snapshot, reason }
    }
}

impl From<pb::PassedOver> for PassedOver {
    fn from(passed: pb::PassedOver) -> Self {
        let pb::PassedOver { snapshot, reason } = passed;
        Self { snapshot, reason }
    }
}

impl From<&Fallback> for pb::Fallback {
    fn from(fallback: &Fallback) -> Self {
        let Fallback { at, attempt, to, passed_over } = fallback;
        Self {
            at_ms: at.0,
            attempt: attempt.0,
            to: to.clone(),
            passed_over: passed_over.iter().map(Into::into).collect(),
        }
    }
}

impl From<pb::Fallback> for Fallback {
    fn from(fallback: pb::Fallback) -> Self {
        let pb::Fallback { at_ms, attempt, to, passed_over } = fallback;
        Self {
            at: Millis(at_ms),
            attempt: Attempt(attempt),
            to,
            passed_over: passed_over.into_iter().map(Into::into).collect(),
        }
    }
}
