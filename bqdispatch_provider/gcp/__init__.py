"""The only room that talks to Google: Cloud Storage, BigQuery, Pub/Sub.

==================================================  ==================================================
question                                            file
==================================================  ==================================================
Which calls are made on the task folder?            ``storage``; by URL in any bucket: ``objects``
What lies, or lay, in the trigger bucket?           ``trigger_bucket``
What does an answer of Cloud Storage say?           ``storage_answers``
What follows a 404 or 412?                          a table in the room ``delivery``
What is retried, batched and slowed down?           ``storage_calls``, ``gcs_batch``, ``rate_limit``
What is an error, and what is worth a retry?        ``errors``
How do jobs stand?                                  ``jobs``, by ``project_search`` and ``job_search``
What does BigQuery answer, and how is it asked?     ``job_answers``, ``job_calls``
What has a fired window loaded?                     ``load_jobs``
What may the account do?                            ``permissions``
Which settings of a bucket get in the way?          ``bucket_settings``
How is a job's end known without a look?            ``pubsub``
How are clients and threads made?                   ``clients``, ``emulators``, ``threads``
==================================================  ==================================================

Here belong calls, retries, rate limits and what an error means. What an answer means for an event belongs in
``delivery``.
"""
