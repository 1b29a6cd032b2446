//! `AlwaysAdmit` and `AlwaysDeny`, deprecated as upstream's.

use async_trait::async_trait;

use crate::admit::{Admission, Attributes, Cluster};
use crate::error::Result;

pub struct AlwaysAdmit;

#[async_trait]
impl Admission for AlwaysAdmit {
    fn name(&self) -> &'static str {
        "AlwaysAdmit"
    }

    fn handles(&self, _attributes: &Attributes<'_>) -> bool {
        false
    }
}

pub struct AlwaysDeny;

#[async_trait]
impl Admission for AlwaysDeny {
    fn name(&self) -> &'static str {
        "AlwaysDeny"
    }

    fn handles(&self, _attributes: &Attributes<'_>) -> bool {
        true
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        Err(attributes.forbid("admission control is denying all modifications"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fake::{Fixed, Request};
    use super::*;
    use crate::admit::Operation;
    use serde_json::json;

    #[tokio::test]
    async fn all_or_nothing() {
        for operation in [Operation::Create, Operation::Update, Operation::Delete, Operation::Connect] {
            let request = || Request::new("", "pods", operation, json!({"metadata": {"name": "p"}}));
            assert_eq!(request().admit(&AlwaysAdmit, &Fixed::default()).await, Ok(()));
            assert_eq!(
                request().admit(&AlwaysDeny, &Fixed::default()).await,
                Err("pods \"p\" is forbidden: admission control is denying all modifications".to_owned())
            );
        }
    }
}
