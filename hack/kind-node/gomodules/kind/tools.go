//go:build tools

// Package tools names the commands of kind, so that go.sum covers them.
package tools

import (
	_ "sigs.k8s.io/kind"
)
