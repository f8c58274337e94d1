//! The weights of a model as every executor receives them: f32 on the host, converted once at upload.

use std::collections::HashMap;
use std::sync::Arc;

use super::tensor::{DType, Precision, Shape};

/// Index into a [`WeightSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub(crate) usize);

impl WeightId {
    pub fn index(self) -> usize {
        self.0
    }
}

/// How a weight is stored on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In the precision of the plans: projections, convolutions, tables added to activations.
    Matrix,
    /// Always f32: biases, norm weights, rotary tables.
    Vector,
}

/// One named weight. `data` has `shape.elements()` values, row-major.
#[derive(Clone, Debug)]
pub struct Weight {
    pub name: String,
    pub shape: Shape,
    pub storage: Storage,
    pub data: Arc<[f32]>,
}

impl Weight {
    /// Element type on a device that runs plans of this precision.
    pub fn dtype(&self, precision: Precision) -> DType {
        match self.storage {
            Storage::Matrix => precision.dtype(),
            Storage::Vector => DType::F32,
        }
    }
}

/// All weights of a model, in the order of insertion.
#[derive(Clone, Debug, Default)]
pub struct WeightSet {
    all: Vec<Weight>,
    by_name: HashMap<String, WeightId>,
}

impl WeightSet {
    /// Adds a weight.
    ///
    /// # Panics
    /// If the number of values does not match the shape, or the name is taken: the loader has checked both.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        dims: &[usize],
        storage: Storage,
        data: impl Into<Arc<[f32]>>,
    ) -> WeightId {
        let (name, shape, data) = (name.into(), Shape::new(dims), data.into());
        assert_eq!(shape.elements(), data.len(), "values of {name}");
        let id = WeightId(self.all.len());
        assert!(self.by_name.insert(name.clone(), id).is_none(), "two weights are named {name}");
        self.all.push(Weight { name, shape, storage, data });
        id
    }

    pub fn find(&self, name: &str) -> Option<WeightId> {
        self.by_name.get(name).copied()
    }

    pub fn get(&self, id: WeightId) -> &Weight {
        &self.all[id.0]
    }

    pub fn iter(&self) -> impl Iterator<Item = (WeightId, &Weight)> {
        self.all.iter().enumerate().map(|(i, w)| (WeightId(i), w))
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}
