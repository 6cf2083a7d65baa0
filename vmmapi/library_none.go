//go:build !(cgo && amd64 && (freebsd || vmmapi_standin))

package vmmapi

// native is nil where libvmmapi is not linked in: another operating system or
// processor, or CGO_ENABLED=0.
var native library
