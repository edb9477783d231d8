//! weir-service.
