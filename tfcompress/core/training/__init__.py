"""Parts of `Student.fit` that the schemes share."""
