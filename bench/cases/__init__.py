"""What is measured against what: models in the forms that runtimes need, under every set of conditions."""
