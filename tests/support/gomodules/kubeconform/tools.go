//go:build tools

// Package tools names the command of kubeconform, so that go.sum covers it.
package tools

import (
	_ "github.com/yannh/kubeconform/cmd/kubeconform"
)
