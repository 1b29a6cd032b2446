//! Amounts of resources as plain numbers: what scheduling adds up and compares all the time.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use api::resources::Amounts;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;

/// Milli-CPU, bytes, bytes, and whole units of everything else (`example.com/gpu`, `hugepages-2Mi`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Sorted by name.
    pub others: BTreeMap<String, i64>,
}

impl Resources {
    pub fn from_amounts(amounts: &Amounts) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in amounts {
            resources.set(name, quantity);
        }
        resources
    }

    /// From a node's `allocatable`; `pods` is not among them.
    pub fn from_wire(amounts: Option<&BTreeMap<String, WireQuantity>>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in amounts.into_iter().flatten().filter(|(name, _)| *name != "pods") {
            resources.set(name, &Quantity::from(quantity));
        }
        resources
    }

    fn set(&mut self, name: &str, quantity: &Quantity) {
        match name {
            "cpu" => self.milli_cpu = quantity.milli(),
            "memory" => self.memory = quantity.units(),
            "ephemeral-storage" => self.ephemeral_storage = quantity.units(),
            other => {
                self.others.insert(other.to_owned(), quantity.units());
            }
        }
    }

    /// Sums stay at the limits of what can be counted: subtracting would not undo this.
    pub fn add(&mut self, more: &Self) {
        self.milli_cpu = self.milli_cpu.saturating_add(more.milli_cpu);
        self.memory = self.memory.saturating_add(more.memory);
        self.ephemeral_storage = self.ephemeral_storage.saturating_add(more.ephemeral_storage);
        for (name, amount) in &more.others {
            let sum = self.others.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    pub fn other(&self, name: &str) -> i64 {
        self.others.get(name).copied().unwrap_or(0)
    }
}

/// Names of resources that a class of devices has without saying so, by the class's name.
pub const CLASS_PREFIX: &str = "deviceclass.resource.kubernetes.io/";

/// Whether a resource is not Kubernetes' own: devices may stand behind it.
pub fn is_extended(name: &str) -> bool {
    let foreign = name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.");
    foreign || name.starts_with(CLASS_PREFIX)
}
