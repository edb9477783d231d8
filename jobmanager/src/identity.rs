//! Who asks, and in which namespace: the one place where the JobManager finds that out.
//!
//! Clients say so themselves, and are believed as far as what they say can be a name; authentication would put into a request
//! here what it has proved.

use weir_proto::pb::client::v1 as pb;
use weir_types::Result;
use weir_types::quota::{check_namespace, check_owner};

/// A request that says who asks.
pub(crate) trait Claim {
    /// The owner of what is made, or who stands in the records, and the namespace where jobs are made, looked for or listed;
    /// each empty if the request leaves it open.
    fn claims(&self) -> (&str, &str);
}

/// A request with the identity that it is carried out under.
///
/// # Errors
/// `INVALID_ARGUMENT` for what cannot be the name of an owner or a namespace.
pub(crate) fn resolve<T: Claim>(request: T) -> Result<T> {
    let (owner, namespace) = request.claims();
    if !owner.is_empty() {
        check_owner(owner)?;
    }
    if !namespace.is_empty() {
        check_namespace(namespace)?;
    }
    Ok(request)
}

macro_rules! claims {
    ($($message:ident: |$request:ident| $owner:expr, $namespace:expr;)+) => {$(
        impl Claim for pb::$message {
            fn claims(&self) -> (&str, &str) {
                let $request = self;
                ($owner, $namespace)
            }
        }
    )+};
}

claims! {
    SubmitRequest: |request| &request.owner, &request.namespace;
    TriggerSnapshotRequest: |request| &request.owner, given(&request.namespace);
    StopJobRequest: |request| &request.owner, given(&request.namespace);
    RescaleJobRequest: |request| "", given(&request.namespace);
    SnapshotRequest: |request| "", given(&request.namespace);
    AnnotateSnapshotRequest: |request| "", given(&request.namespace);
    DeleteSnapshotRequest: |request| &request.owner, given(&request.namespace);
    ImportSnapshotRequest: |request| &request.owner, &request.namespace;
    SetPolicyRequest: |request| &request.owner, "";
    RemovePolicyRequest: |request| &request.owner, "";
    ListPoliciesRequest: |request| "", given(&request.namespace);
    JobRequest: |request| "", given(&request.namespace);
    ListJobsRequest: |request| "", given(&request.namespace);
    ListSnapshotsRequest: |request| given(&request.owner), given(&request.namespace);
    ListDeletedRequest: |request| "", given(&request.namespace);
    ListQuotasRequest: |request| "", given(&request.namespace);
}

fn given(name: &Option<String>) -> &str {
    name.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use weir_types::Code;

    use super::*;

    #[test]
    fn names_that_are_none_are_refused_wherever_they_stand() {
        let of = |owner: &str, namespace: &str| pb::SubmitRequest {
            owner: owner.to_owned(),
            namespace: namespace.to_owned(),
            ..Default::default()
        };
        for (owner, namespace) in [("", ""), ("ada@example.org", "team-a")] {
            assert_eq!(resolve(of(owner, namespace)).unwrap(), of(owner, namespace));
        }
        for (owner, namespace) in [("../../x", ""), ("", "../../x"), ("a b", ""), ("", "a/b"), ("", "a\nb")] {
            assert_eq!(
                resolve(of(owner, namespace)).unwrap_err().code,
                Code::InvalidArgument,
                "{owner:?} {namespace:?}"
            );
        }
        let list = pb::ListSnapshotsRequest { owner: Some("../x".to_owned()), ..Default::default() };
        assert_eq!(resolve(list).unwrap_err().code, Code::InvalidArgument);
    }
}
