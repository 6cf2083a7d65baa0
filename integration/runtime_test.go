//go:build linux || freebsd

package integration

import "testing"

// cases are what every runtime has to do alike. One file each per theme.
var cases = []struct {
	name string
	run  func(*rig)
}{
	{"hello", testHello},
	{"process", testProcess},
	{"stdout of 64 MiB", testLargeStdout},
	{"stdin of 64 MiB", testLargeStdin},
	{"tty", testTTY},
	{"exec", testExec},
	{"logger, hooks and clients that change", testLogger},
	{"exec after exec loses nothing", testShortExecs},
	{"signals", testSignals},
	{"kill all", testKillAll},
	{"inspection", testInspection},
	{"delete", testDelete},
	{"events", testEvents},
	{"states", testStates},
	{"pause", testPause},
	{"limits", testLimits},
	{"file system", testFileSystem},
	{"read-only root", testReadOnlyRoot},
	{"mounts", testMounts},
	{"foreign program", testForeignProgram},
	{"malformed config", testMalformedConfig},
	{"unknown options", testUnknownOptions},
	{"shim killed", testShimKilled},
	{"containerd restarted", testContainerdRestarted},
}

func TestRuntime(t *testing.T) {
	for _, rt := range runtimes {
		t.Run(rt.name, func(t *testing.T) {
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) { c.run(newRig(t, rt.runtime)) })
			}
		})
	}
}
