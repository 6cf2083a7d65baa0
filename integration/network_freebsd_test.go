package integration

func testDefaultNetwork(r *rig) {
	r.Skip("the lab's world beyond the host is made of Linux's network namespaces")
}

func testNamespaceOfTheHost(r *rig) { r.Skip("FreeBSD has no network namespaces") }

func testNerdctlPublishes(r *rig) { r.Skip("nerdctl's networks are Linux's") }

func testPodNetwork(r *rig) { r.Skip("there is no CRI on FreeBSD") }
