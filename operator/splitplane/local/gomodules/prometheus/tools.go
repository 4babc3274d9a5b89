//go:build tools

// Package tools names the command that the embedded cluster builds, so that go.sum covers it.
package tools

import _ "github.com/prometheus/prometheus/cmd/prometheus"
