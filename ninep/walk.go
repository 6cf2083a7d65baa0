package ninep

// attach makes a fid for the root: fid[4] afid[4] uname[s] aname[s]
// n_uname[4]. The client attaches once for every uid that uses the mount.
func (s *session) attach(d *decoder, r *reply) error {
	id, afid := d.u32(), d.u32()
	_, aname, uid := d.str(), d.str(), d.u32()
	if err := d.done(); err != nil {
		return err
	}
	if afid != noFid {
		return linuxEINVAL
	}
	// What is served was decided by whoever opened the connection.
	if aname != "" && aname != "/" {
		return linuxENOENT
	}
	n, q, err := s.named(s.tree.root)
	if err != nil {
		return err
	}
	if err := s.install(id, &fid{uid: uid, node: n, refs: 1}); err != nil {
		return err
	}
	r.qid(q)
	return nil
}

// install puts f into the table, or releases it.
func (s *session) install(id uint32, f *fid) error {
	if err := s.fids.insert(id, f); err != nil {
		s.put(f)
		return err
	}
	return nil
}

// walk follows names from a fid, one directory entry each: fid[4] newfid[4]
// nwname[2] nwname*(wname[s]). If it gets somewhere but not to the end, the
// reply says how far, and newfid stays unused.
func (s *session) walk(d *decoder, r *reply) error {
	id, newID, count := d.u32(), d.u32(), int(d.u16())
	if count > maxWalk {
		return errMalformed
	}
	var names [maxWalk]string
	for i := range count {
		names[i] = d.str()
	}
	if err := d.done(); err != nil {
		return err
	}
	f, err := s.fids.acquire(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	if newID == id && f.use.Load() != nil {
		return linuxEBADF
	}

	n := f.current().retain()
	var qids [maxWalk]qid
	walked := 0
	for walked < count {
		next, q, err := s.lookup(n, names[walked])
		if err != nil {
			if walked == 0 {
				n.release()
				return err
			}
			break
		}
		n.release()
		n = next
		qids[walked] = q
		walked++
	}
	if walked < count {
		n.release()
	} else if err := s.installWalked(id, newID, f, n); err != nil {
		return err
	}
	r.u16(uint16(walked))
	for _, q := range qids[:walked] {
		r.qid(q)
	}
	return nil
}

// installWalked takes over n.
func (s *session) installWalked(id, newID uint32, from *fid, n *node) error {
	f := &fid{uid: from.uid, node: n, refs: 1}
	if newID != id {
		return s.install(newID, f)
	}
	if err := s.fids.replace(id, from, f); err != nil {
		s.put(f)
		return err
	}
	s.put(from)
	return nil
}

// clunk gives up a fid: fid[4]. For one made by Txattrcreate that is when the
// attribute is set, and the reply tells how that went; the fid is gone in any
// case.
func (s *session) clunk(d *decoder, r *reply) error {
	id := d.u32()
	if err := d.done(); err != nil {
		return err
	}
	f, err := s.fids.remove(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	if u := f.use.Load(); u != nil && u.xattrWrite != nil {
		fd, err := s.pins.pin(f.node)
		if err != nil {
			return err
		}
		defer s.pins.unpin(f.node)
		return u.xattrWrite.commit(fd, f.node.typ)
	}
	return nil
}
