//! weir-integration-tests.
