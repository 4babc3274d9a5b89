//go:build tools

// Package tools names the command that the embedded cluster builds, so that go.sum covers it.
package tools

import _ "helm.sh/helm/v4/cmd/helm"
